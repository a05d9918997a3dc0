"""From the scores of every cell to a fixed number of detections: tensor code that scripts, exports and batches."""

import torch
from torch import Tensor
from torchvision.ops import nms

from detframe.boxes import pairwise_iou
from detframe.structures import Detections


def best_candidates(boxes: Tensor, scores: Tensor, score_threshold: float, candidates: int) -> Detections:
    """The best pairs of box and class of dense predictions, several of one object among them.

    Args:
        boxes: ``[B, A, 4]``, xyxy in pixels, within the image; or ``[B, A, C, 4]``, where each class has its own.
        scores: ``[B, A, C]``, 0..1; a box may be found under several classes.
        score_threshold: Scores at or below it are no detections, nor are boxes without area.
        candidates: M, how many slots come out.
    """
    classes = scores.shape[2]
    top, index = padded_topk(scores.flatten(1), candidates)
    row = index // classes if boxes.dim() == 3 else index
    chosen = boxes.reshape(boxes.shape[0], -1, 4).gather(1, row[..., None].expand(-1, -1, 4))
    valid = (top > score_threshold) & (chosen[..., 2:] > chosen[..., :2]).all(dim=-1)
    return Detections(chosen, top, index % classes, valid)


def padded_topk(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Best ``count`` scores of each row ``[B, N]`` and their indices, ``[B, count]``; 0 fills up where N is smaller.

    So no size of image or number of classes needs a case of its own.
    """
    top, index = torch.nn.functional.pad(scores, [0, count]).topk(count, dim=1)
    return top, index.clamp(max=scores.shape[1] - 1)


def suppress(candidates: Detections, iou_threshold: float, detections: int) -> Detections:
    """The best of candidates, of which none overlaps a better one of its class.

    Args:
        candidates: With M slots, as :func:`best_candidates` gives them.
        iou_threshold: A box that overlaps a better one of its class more than this is dropped.
        detections: K, how many slots come out; at most M.
    """
    boxes, scores, labels, live = candidates
    keep = unsuppressed(boxes, scores, labels, live, iou_threshold)
    final, order = torch.where(keep, scores, -1.0).topk(detections, dim=1)
    valid = final >= 0
    return Detections(
        boxes=torch.where(valid[..., None], boxes.gather(1, order[..., None].expand(-1, -1, 4)), 0.0),
        scores=torch.where(valid, final, 0.0),
        labels=torch.where(valid, labels.gather(1, order), 0),
        valid=valid,
    )


def vote(found: Detections, candidates: Detections, spread: float = 0.025) -> Detections:
    """Detections, each where the candidates of its class that overlap it lie on the mean.

    Box voting (Gidaris and Komodakis 2015): the best candidate says best what an object is, and all together where its
    sides are. It counts by its score and by how much it overlaps the detection (variance voting, He et al. 2019). There
    is nothing that the rounding of another device could make jump: no threshold, and the last of the candidates has no
    vote, since it is chance whether another took its slot. The detection itself counts with all of its score.

    Args:
        found: Some of the candidates, in K slots, as :func:`suppress` gives them.
        candidates: In M slots.
        spread: How slowly a vote fades as boxes overlap less: at an IoU of 0.9 it is 0.67, at 0.8 it is 0.20.
    """
    overlap = pairwise_iou(found.boxes, candidates.boxes)  # [B, K, M]
    counts = (found.labels[:, :, None] == candidates.labels[:, None]) & candidates.valid[:, None]
    last = candidates.scores.amin(dim=-1, keepdim=True)[:, None]  # [B, 1, 1], 0 where a slot is left
    weights = counts * (candidates.scores[:, None] - last) * torch.exp(-(1 - overlap).square() / spread)
    total = (weights.sum(dim=-1, keepdim=True) + last).clamp(min=1e-30)
    # No matrix product: under autocast it would be of half precision, which has too few digits for pixels.
    boxes = ((weights / total)[:, :, None] * candidates.boxes.transpose(1, 2)[:, None]).sum(dim=-1)
    boxes = boxes + last / total * found.boxes
    boxes = torch.minimum(boxes, candidates.boxes.amax(dim=1, keepdim=True))  # rounding may leave the image
    return Detections(torch.where(found.valid[..., None], boxes, 0.0), found.scores, found.labels, found.valid)


def unsuppressed(boxes: Tensor, scores: Tensor, groups: Tensor, live: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes no better one of their image and group overlaps more than the threshold, ``[B, M]`` bool.

    Args:
        boxes: ``[B, M, 4]``, xyxy in pixels, none negative.
        scores: ``[B, M]``.
        groups: ``[B, M]``, whole numbers from 0: classes or levels.
        live: ``[B, M]``, False for boxes that do not take part.
        iou_threshold: 0..1.
    """
    # One call for the whole batch: images and groups are laid out side by side so that they never overlap. In float64
    # the shift costs no precision. Boxes that are not live share one place, where the first suppresses the rest.
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    place = image * (groups.max() + 1) + groups + 1
    shifted = boxes.double() + (place.double() * (boxes.max() + 1).double())[..., None]
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=boxes.device)
    shifted = torch.where(live[..., None], shifted, unit)
    kept = nms(shifted.flatten(0, 1), torch.where(live, scores, -1.0).double().flatten(), iou_threshold)
    keep = torch.zeros_like(live).flatten().scatter(0, kept, torch.ones_like(kept, dtype=torch.bool)).view_as(live)
    return keep & live
