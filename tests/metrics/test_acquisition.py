"""What an image is worth and how alike two are, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detframe.metrics.acquisition import (
    Objects,
    Places,
    choose_diverse,
    class_difficulty,
    class_shares,
    distinct,
    entropy,
    group_places,
    nearly_same,
    similarity_to,
)
from detframe.metrics.rows import DetectionRows


def detections(*rows: tuple[int, list[float], float, int]) -> DetectionRows:
    images, boxes, scores, labels = zip(*rows, strict=True)
    return DetectionRows(torch.tensor(images), torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_detections_of_one_object_are_one_place_whatever_their_class() -> None:
    found = detections(
        (0, [0.0, 0, 10, 10], 0.4, 1),
        (0, [1.0, 0, 11, 10], 0.6, 0),
        (0, [40.0, 40, 50, 50], 0.5, 0),
        (1, [0.0, 0, 10, 10], 0.9, 1),  # the same box in another image
    )
    places = group_places(found)
    assert places.leads.tolist() == [1, 2, 3]
    assert places.of_detection.tolist() == [0, 0, 1, 2]


def test_a_detection_between_two_places_belongs_to_the_nearer() -> None:
    found = detections(
        (0, [0.0, 0, 10, 10], 0.9, 0), (0, [6.0, 0, 16, 10], 0.8, 0), (0, [2.5, 0, 12.5, 10], 0.3, 0)
    )  # IoU 0.6 and 0.48
    assert group_places(found).of_detection.tolist() == [0, 1, 0]


def test_no_detection_is_no_place() -> None:
    none = torch.zeros(0)
    places = group_places(DetectionRows(none.long(), none.view(0, 4), none, none.long()))
    assert len(places.leads) == len(places.of_detection) == 0
    assert class_shares(places, none, none.long(), 3).shape == (0, 3)


def test_shares_are_the_best_of_each_class_and_never_more_than_one() -> None:
    places = Places(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 3]))
    shares = class_shares(places, torch.tensor([0.3, 0.2, 0.5, 0.9, 0.6]), torch.tensor([0, 0, 1, 0, 2]), 3)
    torch.testing.assert_close(shares, torch.tensor([[0.3, 0.5, 0.0], [0.6, 0.0, 0.4]]), check_dtype=False)


def test_entropy_is_in_bits_and_counts_background() -> None:
    shares = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.5], [0.25, 0.25]])
    assert entropy(shares).tolist() == pytest.approx([1, 0, 0, 1, 1.5])


def test_difficulty_leans_on_the_mean_where_objects_are_few() -> None:
    ap, objects = np.array([0.9, 0.4, 0.4, np.nan]), np.array([1000, 1000, 10, 0])
    mean = (1000 * 0.1 + 1000 * 0.6 + 10 * 0.6) / 2010
    expected = [(100 + 10 * mean) / 1010, (600 + 10 * mean) / 1010, (6 + 10 * mean) / 20, mean]
    np.testing.assert_allclose(class_difficulty(ap, objects), expected)
    assert class_difficulty(np.array([np.nan]), np.array([0])).tolist() == [1]


def unit(*angles: float) -> torch.Tensor:
    turns = torch.tensor(angles)
    return torch.stack((turns.cos(), turns.sin()), dim=1)


def test_similarity_matches_objects_of_one_class_both_ways() -> None:
    objects = Objects(
        images=torch.tensor([0, 0, 1, 1, 2]),
        labels=torch.tensor([0, 1, 0, 0, 1]),
        weights=torch.tensor([3.0, 1, 1, 1, 1]),
        vectors=unit(0.0, 0.0, 0.5, 1.0, 0.0),
    )
    alike = similarity_to(objects, 0, 4)
    one = np.cos(0.5)  # the nearest object of class 0
    there, back = (np.cos(0.5) + np.cos(1.0)) / 2, (3 * one + 0) / 4
    assert alike.tolist() == pytest.approx([1, (there + back) / 2, (1 + 1 / 4) / 2, 0])


def test_the_choice_takes_the_best_first_and_then_what_differs() -> None:
    objects = Objects(torch.arange(4), torch.zeros(4, dtype=torch.int64), torch.ones(4), unit(0.0, 0.1, 1.2, 0.05))
    values = torch.tensor([1.0, 0.95, 0.5, 0.9])
    whole = torch.nn.functional.normalize(torch.ones(4, 2), dim=1)
    assert choose_diverse(values, objects, whole, 2) == [0, 2]
    assert choose_diverse(values, objects, whole, 9) == [0, 2, 1, 3]


def test_images_without_objects_are_told_apart_as_wholes() -> None:
    none = torch.zeros(0)
    objects = Objects(none.long(), none.long(), none, none.view(0, 2))
    assert choose_diverse(torch.tensor([1.0, 0.9, 0.5]), objects, unit(0.0, 0.01, 1.5), 2) == [0, 2]


@pytest.fixture
def thumbnails() -> np.ndarray:
    """0 and 3 but for noise, 4 as 0 with a scratch of one pixel; 1 and 2 others."""
    rng = np.random.default_rng(0)
    made = rng.integers(0, 256, (5, 1024), dtype=np.uint8)
    made[3] = np.clip(made[0].astype(int) + rng.integers(-10, 11, 1024), 0, 255)
    made[4] = made[0]
    made[4, 500] ^= 128
    return made


def test_noise_makes_no_new_image_and_a_scratch_does(thumbnails: np.ndarray) -> None:
    assert nearly_same(thumbnails, thumbnails[[2, 0]]).tolist() == [1, -1, 0, 1, -1]
    assert nearly_same(thumbnails[:0], thumbnails).tolist() == []
    assert nearly_same(thumbnails[:1], thumbnails[:0]).tolist() == [-1]


def test_distinct_keeps_the_first_of_those_alike(thumbnails: np.ndarray) -> None:
    assert distinct([3, 4, 0, 2, 1], thumbnails, 3) == ([3, 4, 2], {0: 3})
    assert distinct([1, 3, 0], thumbnails, 1) == ([1], {})
    many = np.concatenate([thumbnails[[0, 1]]] * 300)  # more than are looked at together
    found, twins = distinct(range(600), many, 10)
    assert found == [0, 1]
    assert {twins[i] for i in range(2, 600, 2)} == {0}
