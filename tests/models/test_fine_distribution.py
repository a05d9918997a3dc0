import pytest
import torch
from transformers.loss.loss_d_fine import bbox2distance, weighting_function

from detframe.models.fine_distribution import (
    boxes_from_distributions,
    distillation_loss,
    fine_grained_loss,
    offset_values,
    offsets_of,
)
from detframe.models.set_prediction import corners

BINS, BOUND, SCALE = 32, torch.tensor([0.5]), torch.tensor([4.0])


def test_offsets_of_the_bins_equal_those_of_transformers() -> None:
    values = offset_values(BINS, BOUND, SCALE)
    torch.testing.assert_close(values, weighting_function(BINS, BOUND, 4))
    assert values[BINS // 2] == 0
    assert (values.diff() > 0).all()
    assert values[-1] == 4  # a whole side: twice the bound, in quarters


def test_an_even_distribution_leaves_the_reference_and_certainty_moves_a_side() -> None:
    values = offset_values(BINS, BOUND, SCALE)
    reference = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    distributions = torch.zeros(1, 1, 4, BINS + 1)
    torch.testing.assert_close(boxes_from_distributions(reference, distributions, values, SCALE), reference)
    distributions[0, 0, 0, -1] = 1e4  # the left side, outwards by a whole width
    moved = boxes_from_distributions(reference, distributions, values, SCALE)
    torch.testing.assert_close(moved, torch.tensor([[[0.4, 0.5, 0.4, 0.4]]]))


def test_offsets_are_the_way_back() -> None:
    torch.manual_seed(0)
    values = offset_values(BINS, BOUND, SCALE)
    reference, distributions = torch.rand(2, 3, 4) * 0.5 + 0.2, torch.randn(2, 3, 4, BINS + 1)
    boxes = boxes_from_distributions(reference, distributions, values, SCALE)
    expected = (distributions.softmax(-1) * values).sum(-1)
    torch.testing.assert_close(offsets_of(corners(boxes), reference, SCALE), expected, atol=1e-4, rtol=1e-4)


def test_fine_grained_loss_equals_cross_entropy_at_the_bins_that_transformers_names() -> None:
    torch.manual_seed(0)
    values = offset_values(BINS, BOUND, SCALE)
    reference, boxes = torch.rand(6, 4) * 0.5 + 0.2, torch.rand(6, 4) * 0.5 + 0.2  # some are out of the bins' reach
    logits = torch.randn(6, 4, BINS + 1)
    left, right_share, left_share = bbox2distance(reference, corners(boxes), BINS, SCALE, BOUND)
    flat = logits.flatten(0, 1)
    entropy = torch.nn.functional.cross_entropy
    theirs = (
        entropy(flat, left.long(), reduction="none") * left_share
        + entropy(flat, left.long() + 1, reduction="none") * right_share
    )
    truth = offsets_of(corners(boxes)[None], reference[None], SCALE)
    ours = fine_grained_loss(logits[None], truth, values)
    torch.testing.assert_close(ours[0], theirs.view(6, 4).sum(dim=-1))


def test_distillation_is_zero_for_the_teacher_itself_and_teaches_only_the_student() -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(1, 2, 4, 5, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(distillation_loss(teacher, teacher), torch.zeros(1, 2), atol=1e-5, rtol=0)
    distillation_loss(student, teacher).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_distillation_of_two_bins_by_hand() -> None:
    student, teacher = torch.zeros(1, 1, 4, 2), torch.tensor([5.0, 0.0]).expand(1, 1, 4, 2)
    likely = 1 / (1 + 2.718281828**-1)  # at temperature 5
    divergence = likely * torch.tensor(likely / 0.5).log() + (1 - likely) * torch.tensor((1 - likely) / 0.5).log()
    assert float(distillation_loss(student, teacher)) == pytest.approx(25 * float(divergence), rel=1e-4)
