import torch

from detframe.models.denoising import attention_mask, noise_objects
from detframe.models.set_prediction import Objects, corners

CLASSES = 4


def objects_of(*counts: int) -> Objects:
    rows = max(*counts, 1)
    boxes = torch.rand(len(counts), rows, 4) * 0.2 + torch.tensor([0.4, 0.4, 0.1, 0.1])
    return Objects(boxes, torch.randint(0, CLASSES, (len(counts), rows)), list(counts))


def test_every_group_has_each_object_to_find_and_to_refuse() -> None:
    torch.manual_seed(0)
    objects = objects_of(3, 1)
    noised = noise_objects(objects, CLASSES, 10, label_noise=0.0, box_noise=1.0)
    assert noised.group.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert noised.match.tolist() == [[0, 1, 2, -1, -1, -1] * 3, [0, -1, -1, -1, -1, -1] * 3]
    assert noised.padding.tolist() == [[False] * 18, [False, True, True] * 6]
    assert noised.labels[0].tolist() == objects.labels[0].tolist() * 6
    assert (noised.labels[1][noised.padding[1]] == CLASSES).all()

    moved = (corners(noised.boxes[0]) - corners(objects.boxes[0]).repeat(6, 1)).abs()
    half = objects.boxes[0, :, 2:].repeat(6, 2) / 2
    found = noised.match[0] >= 0
    assert (moved[found] <= half[found] + 1e-6).all()
    sides_kept = (noised.boxes[0, :, 2:] > 0).all(dim=-1)  # a box turned inside out by the noise has no sides
    refused = ~found & sides_kept
    assert (moved[refused] >= half[refused] - 1e-6).all()


def test_labels_are_drawn_anew_as_often_as_said() -> None:
    torch.manual_seed(0)
    objects = Objects(torch.full((20, 50, 4), 0.5), torch.zeros(20, 50, dtype=torch.int64), [50] * 20)
    labels = noise_objects(objects, CLASSES, 100, label_noise=0.5, box_noise=1.0).labels
    assert abs((labels != 0).float().mean() - 0.25 * (CLASSES - 1) / CLASSES) < 0.02


def test_a_crowded_image_has_no_more_queries_than_allowed() -> None:
    torch.manual_seed(0)
    noised = noise_objects(objects_of(300, 4), CLASSES, 100, label_noise=0.5, box_noise=1.0)
    assert noised.labels.shape == (2, 200)
    crowded, sparse = noised.match
    assert len(set(crowded[crowded >= 0].tolist())) == 100
    assert sorted(sparse[sparse >= 0].tolist()) == [0, 1, 2, 3]


def test_a_batch_without_objects_has_padding_alone() -> None:
    noised = noise_objects(objects_of(0, 0), CLASSES, 10, label_noise=0.5, box_noise=1.0)
    assert noised.padding.all()
    assert (noised.match == -1).all()
    assert noised.boxes.isfinite().all()


def test_groups_see_themselves_and_the_others_see_no_group() -> None:
    mask = attention_mask(torch.tensor([0, 0, 1]), 2)
    assert mask.int().tolist() == [
        [0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]
