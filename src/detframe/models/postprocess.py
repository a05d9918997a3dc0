"""From the scores of every cell to a fixed number of detections: tensor code that scripts, exports and batches."""

import torch
from torch import Tensor
from torchvision.ops import nms

from detframe.structures import Detections


def select_detections(
    boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, candidates: int, detections: int
) -> Detections:
    """Non-maximum suppression per class, best first.

    Args:
        boxes: ``[B, A, 4]``, xyxy in pixels, within the image.
        scores: ``[B, A, C]``, 0..1; a box may be found under several classes.
        score_threshold: Scores at or below it are no detections.
        iou_threshold: A box that overlaps a better one of its class more than this is dropped.
        candidates: How many of the best scores of an image enter the suppression.
        detections: K, how many slots come out; ``detections <= candidates``.

    Returns:
        Detections with K slots.
    """
    anchors, classes = scores.shape[1], scores.shape[2]
    # Small inputs have fewer scores than candidates: zeros fill up, so that no size needs a case of its own.
    padded = torch.nn.functional.pad(scores.flatten(1), [0, candidates])
    top, index = padded.topk(candidates, dim=1)  # [B, candidates]
    anchor = (index // classes).clamp(max=anchors - 1)
    labels = index % classes
    chosen = boxes.gather(1, anchor[..., None].expand(-1, -1, 4))
    sides = chosen[..., 2:] - chosen[..., :2]
    live = (top > score_threshold) & (sides > 0).all(dim=-1)

    # One call for the whole batch: images and classes are laid out side by side so that they never overlap. In
    # float64 the shift costs no precision. Empty slots share one place, where the first of them suppresses the rest.
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    cell = (chosen.amax() + 1).double()
    shifted = chosen.double() + ((image * classes + labels + 1).double() * cell)[..., None]
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=boxes.device)
    shifted = torch.where(live[..., None], shifted, unit)
    kept = nms(shifted.flatten(0, 1), torch.where(live, top, -1.0).double().flatten(), iou_threshold)
    keep = torch.zeros_like(live).flatten().scatter(0, kept, torch.ones_like(kept, dtype=torch.bool)).view_as(live)

    final, order = torch.where(keep & live, top, -1.0).topk(detections, dim=1)
    valid = final >= 0
    return Detections(
        boxes=torch.where(valid[..., None], chosen.gather(1, order[..., None].expand(-1, -1, 4)), 0.0),
        scores=torch.where(valid, final, 0.0),
        labels=torch.where(valid, labels.gather(1, order), 0),
        valid=valid,
    )
