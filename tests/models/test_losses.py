"""Losses against torchvision's."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from detframe.models.losses import giou_loss


@given(st.integers(0, 2**16), st.sampled_from([5.0, 60.0]))
def test_giou_loss_and_its_gradient_are_torchvisions(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def boxes() -> torch.Tensor:
        corners = torch.rand(2, 9, 2, generator=generator, dtype=torch.float64) * spread
        sides = torch.rand(2, 9, 2, generator=generator, dtype=torch.float64) * 10 + 0.1
        return torch.cat((corners, corners + sides), dim=-1).requires_grad_()

    found, truth = boxes(), boxes()
    ours, theirs = giou_loss(found, truth), generalized_box_iou_loss(found, truth)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss.sum(), (found, truth)) for loss in (ours, theirs))
    torch.testing.assert_close(*gradients)
