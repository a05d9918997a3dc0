"""Fine-grained distribution refinement: a side of a box as a distribution over offsets (D-FINE, Peng et al., 2024).

Postponed annotations would break TorchScript here, which compiles these functions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from detframe.models.losses import two_bin_cross_entropy


def offset_values(bins: int, bound: Tensor, scale: Tensor) -> Tensor:
    """Offsets W(n) that the bins stand for, ``[bins + 1]``: dense around 0, sparse further out (D-FINE, section 4.1).

    Args:
        bins: N, even.
        bound: ``[1]``, a: where the dense part ends, as a share of the box's side; the last bins lie twice as far.
        scale: ``[1]``, 1/c: offsets count in this fraction of the box's side.
    """
    reach = bound.abs() * scale.abs()
    base = (reach + 1) ** (2 / (bins - 2))
    outwards = base ** torch.arange(1, bins // 2, device=bound.device) - 1
    zero = torch.zeros_like(reach)
    return torch.cat((-2 * reach, -outwards.flip(0), zero, outwards, 2 * reach))


def boxes_from_distributions(reference: Tensor, distributions: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Boxes ``[B, Q, 4]`` cxcywh whose sides lie where their distributions say on average (section 4.1).

    Args:
        reference: ``[B, Q, 4]``, cxcywh, the boxes whose sides are moved.
        distributions: ``[B, Q, 4, bins + 1]`` logits, for left, top, right and bottom, outwards.
        values: ``[bins + 1]``, offsets of the bins.
        scale: ``[1]``, see :func:`offset_values`.
    """
    offsets = (distributions.softmax(dim=-1) * values).sum(dim=-1)  # [B, Q, 4]
    sides = reference[..., 2:].repeat(1, 1, 2) / scale.abs()
    distances = (0.5 * scale.abs() + offsets) * sides  # from the reference's centre
    low, high = reference[..., :2] - distances[..., :2], reference[..., :2] + distances[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def offsets_of(boxes: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
    """Offsets ``[B, Q, 4]`` that would move the reference's sides onto a box: the inverse of the above.

    Args:
        boxes: ``[B, Q, 4]``, xyxy.
        reference: ``[B, Q, 4]``, cxcywh.
        scale: ``[1]``, see :func:`offset_values`.
    """
    centres = reference[..., :2]
    distances = torch.cat((centres - boxes[..., :2], boxes[..., 2:] - centres), dim=-1)
    sides = reference[..., 2:].repeat(1, 1, 2) / scale.abs()
    return distances / sides.clamp(min=1e-6) - 0.5 * scale.abs()


def fine_grained_loss(distributions: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """Fine-grained localisation loss ``[B, Q]``, summed over sides: cross entropy to the two bins beside the truth.

    The FGL loss of D-FINE, section 4.1, without its weight by IoU.

    Args:
        distributions: ``[B, Q, 4, bins + 1]`` logits.
        offsets: ``[B, Q, 4]``, the true ones; those beyond the last bin count as the last bin.
        values: ``[bins + 1]``, offsets of the bins, ascending.
    """
    left = (torch.searchsorted(values, offsets.contiguous(), right=True) - 1).clamp(0, len(values) - 2)
    share = ((offsets - values[left]) / (values[left + 1] - values[left])).clamp(0, 1)  # of the right bin
    return two_bin_cross_entropy(distributions, left, share).sum(dim=-1)


def distillation_loss(distributions: Tensor, teacher: Tensor, temperature: float = 5.0) -> Tensor:
    """What an earlier layer's distributions lack of the last layer's, ``[B, Q]``, the mean over sides.

    Kullback-Leibler divergence at a temperature, times its square: the DDF loss of D-FINE,
    section 4.2, without its weights.

    Args:
        distributions: ``[B, Q, 4, bins + 1]`` logits.
        teacher: Same shape; no gradient goes there.
        temperature: T.
    """
    divergence = functional.kl_div(
        (distributions / temperature).log_softmax(dim=-1),
        (teacher.detach() / temperature).log_softmax(dim=-1),
        reduction="none",
        log_target=True,
    )
    return divergence.sum(dim=-1).mean(dim=-1) * temperature**2
