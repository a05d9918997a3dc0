"""Jobs that are answered together: each as if it were alone."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.serving.conftest import FAILS, NAMES, as_float32, encoded, expected, picture

from detframe.data.images import SentImage
from detframe.export.runtime import Answer, Artefact
from detframe.serving.answers import Predicted, answer_jobs, as_json
from detframe.serving.limits import Refusal
from detframe.serving.uploads import Job


def job(*images: NDArray[np.uint8] | bytes, everything: bool = False) -> Job:
    contents = [image if isinstance(image, bytes) else encoded(image) for image in images]
    return Job([SentImage(content, f"image {i}") for i, content in enumerate(contents)], 0, everything)


def counted(artefact: Artefact) -> tuple[Artefact, list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = []

    def run(images: NDArray[np.uint8]) -> Answer:
        shapes.append(images.shape)
        assert images.flags.c_contiguous
        return artefact.run(images)

    return artefact._replace(run=run), shapes


def found(answer: Predicted | Refusal) -> list[dict[str, Any]]:
    assert isinstance(answer, Predicted), answer
    return [as_float32(image) for image in answer.images]


def test_images_of_one_size_go_together_in_batches_of_the_limit(artefact: Artefact) -> None:
    counting, shapes = counted(artefact)
    wide, tall = [picture(seed=seed) for seed in range(6)], [picture(40, 24, seed=9), picture(40, 24, seed=8)]
    answers = answer_jobs(counting, [job(wide[0], tall[0]), job(*wide[1:5]), job(tall[1]), job(wide[5])], 4)
    assert sorted(shapes) == [(2, 3, 24, 40), (2, 3, 40, 24), (4, 3, 24, 40)]
    asked = [[wide[0], tall[0]], wide[1:5], [tall[1]], [wide[5]]]
    for answer, images in zip(answers, asked, strict=True):
        assert found(answer) == [expected(artefact, image) for image in images]
    assert [answer.batch for answer in answers if isinstance(answer, Predicted)] == [4, 4, 2, 2]


def test_a_damaged_image_fails_its_own_request_alone(artefact: Artefact) -> None:
    good, damaged = picture(seed=1), encoded(picture(seed=2))[:-60]
    first, second, third = answer_jobs(artefact, [job(good), job(good, damaged), job(good)], 4)
    assert found(first) == found(third) == [expected(artefact, good)]
    assert isinstance(second, Refusal)
    assert second.status == 400
    assert str(second).startswith("image 1: damaged or cut off (")


def test_an_image_that_the_artefact_cannot_do_fails_its_own_request_alone(
    artefact: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = picture(seed=1), picture(seed=2, first=FAILS)
    with caplog.at_level(logging.ERROR):
        first, second, third = answer_jobs(artefact, [job(good), job(bad), job(good)], 4)
    assert found(first) == found(third) == [expected(artefact, good)]
    assert isinstance(second, Refusal)
    assert second.status == 500
    assert "thirteen brings bad luck" in str(second)
    assert "failed on an image of shape (3, 24, 40)" in caplog.text


def test_all_of_the_valid_detections_where_asked(artefact: Artefact) -> None:
    image = picture(seed=3)
    image[..., 0], image[..., 1], image[..., 2] = 200, 100, 50
    some, every = answer_jobs(artefact, [job(image), job(image, everything=True)], 4)
    assert (len(found(some)[0]["detections"]), len(found(every)[0]["detections"])) == (1, 3)
    assert found(every) == [expected(artefact, image, everything=True)]


def test_numbers_are_the_shortest_that_are_the_artefacts(artefact: Artefact) -> None:
    answer = Answer(
        np.array([[[0.1, 12.3, 1 / 3, 640]]], np.float32),
        np.array([[0.9]], np.float32),
        np.array([[2]]),
        np.array([[True]]),
        np.array([[True]]),
        np.array([[0, 0, 0.9]], np.float32),
        np.array([[1.0]], np.float32),
    )
    assert as_json(answer, NAMES, False, 480, 640) == {
        "detections": [{"box": [0.1, 12.3, 0.33333334, 640.0], "score": 0.9, "label": 2, "class_name": "blue"}],
        "width": 640,
        "height": 480,
    }
