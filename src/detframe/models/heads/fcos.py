"""FCOS' head: points instead of anchors, centre-ness; torchvision's modules, so that its weights fit.

Postponed annotations would break TorchScript here, which reads the types of the attributes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.fcos import FCOSHead as Towers
from torchvision.ops import sigmoid_focal_loss

from detframe.boxes import clip_boxes
from detframe.models.anchors import Cells, grid_cells
from detframe.models.assigners import Assigner, FCOSAssigner, assigned_objects
from detframe.models.heads.base import NMSHead, equal_channels
from detframe.models.losses import masked_giou_loss
from detframe.models.postprocess import best_candidates
from detframe.structures import Detections, Level, Targets


class FCOSHead(NMSHead):
    """FCOS (Tian et al., 2019): each cell predicts classes, distances to the sides and how central it lies.

    Args:
        levels: Channels and stride of the feature maps; all of the same channels, whose towers are shared.
        num_classes: C.
        depth: Convolutions of each of the two towers.
        assigner: Says which cells learn which object.
        score_threshold: Scores at or below it are no detections, 0..1.
        nms_iou: IoU above which the worse of two boxes of a class is dropped.
        candidates: Best scores of an image that enter the suppression.
        detections: Slots for detections of an image.

    Raises:
        ValueError: The levels differ in channels, or are too few for the group norms.
    """

    def __init__(
        self,
        levels: list[Level],
        num_classes: int,
        depth: int = 4,
        assigner: Callable[[], Assigner] = FCOSAssigner,
        score_threshold: float = 0.001,
        nms_iou: float = 0.6,
        candidates: int = 1000,
        detections: int = 100,
    ) -> None:
        super().__init__()
        channels = equal_channels(self, levels, grouped=True)
        self.strides = [level.stride for level in levels]
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates = candidates
        self.detections = detections
        self.assigner = assigner()
        self.towers = Towers(channels, 1, num_classes, depth)

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """In input pixels, see :class:`~detframe.models.heads.base.Head`."""
        class_logits, distances, centreness, cells = self.predict(features)
        boxes = clip_boxes(self.decode(distances, cells), image_size[0], image_size[1])
        scores = (class_logits.sigmoid() * centreness.sigmoid()[..., None]).sqrt()
        return best_candidates(boxes, scores, self.score_threshold, self.candidates)

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Cells]:
        """Class logits ``[B, A, C]``, distances ``[B, A, 4]`` in strides, centre-ness logits ``[B, A]``, float32."""
        found: dict[str, Tensor] = self.towers(features)
        centreness = found["bbox_ctrness"].float()[..., 0]
        cells = grid_cells(features, self.strides, 0.0)
        return found["cls_logits"].float(), found["bbox_regression"].float(), centreness, cells

    def decode(self, distances: Tensor, cells: Cells) -> Tensor:
        """Boxes ``[B, A, 4]`` in input pixels of distances in strides to left, top, right and bottom."""
        sides = distances * cells.strides[:, None]
        return torch.cat((cells.centres - sides[..., :2], cells.centres + sides[..., 2:]), dim=-1)

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``class``, ``box`` and ``centreness``, each divided by the positives of the batch."""
        class_logits, distances, centreness, cells = self.predict(features)
        boxes = self.decode(distances, cells)
        assigned = self.assigner(class_logits.detach().sigmoid(), boxes.detach(), cells, targets)
        target_boxes, labels = assigned_objects(assigned, targets)
        positive = assigned.positive

        wanted = torch.zeros_like(class_logits).scatter(2, labels[..., None], assigned.quality[..., None])
        class_loss = sigmoid_focal_loss(class_logits, wanted) * ~assigned.ignored[..., None]
        box_loss = masked_giou_loss(boxes, target_boxes, positive) * positive
        central = target_centreness(cells.centres, target_boxes)
        centre_loss = functional.binary_cross_entropy_with_logits(
            centreness, torch.where(positive, central, 0.0), reduction="none"
        )

        normaliser = positive.sum().clamp(min=1)
        return {
            "class": class_loss.sum() / normaliser,
            "box": box_loss.sum() / normaliser,
            "centreness": (centre_loss * positive).sum() / normaliser,
        }

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """The class convolution has one row per class."""
        rows = torch.arange(num_classes)[:, None]
        return {f"towers.classification_head.cls_logits.{kind}": rows for kind in ("weight", "bias")}


def target_centreness(centres: Tensor, boxes: Tensor) -> Tensor:
    """How central points ``[A, 2]`` lie in boxes ``[B, A, 4]``, 0..1 (FCOS, eq. 3); 0 outside, ``[B, A]``."""
    before, after = centres - boxes[..., :2], boxes[..., 2:] - centres
    ratio = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after).clamp(min=1e-6)
    return ratio.prod(dim=-1).sqrt()
