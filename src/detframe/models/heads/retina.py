"""RetinaNet's head: anchors, focal loss; torchvision's modules, so that its weights fit.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

import torch
from torch import Tensor
from torch.nn import GroupNorm, functional
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from detframe.boxes import clip_boxes, decode_boxes, encode_boxes
from detframe.models.anchors import base_anchors, grid_anchors, grid_cells
from detframe.models.assigners import assign_by_iou, assigned_objects
from detframe.models.heads.base import NMSHead, equal_channels
from detframe.models.postprocess import best_candidates
from detframe.structures import Detections, Level, Targets

_SIZES = 3  # per octave (RetinaNet, section 4)
_ASPECT_RATIOS = [0.5, 1.0, 2.0]


class RetinaHead(NMSHead):
    """RetinaNet (Lin et al., 2017): nine anchors per cell, focal class loss, L1 loss of encoded boxes.

    Args:
        levels: Channels and stride of the feature maps; all of the same channels, whose towers are shared.
        num_classes: C.
        anchor_scale: Side of the smallest square anchor in strides.
        group_norm: Normalise in the towers, as torchvision's ``retinanet_resnet50_fpn_v2`` does.
        score_threshold: Scores at or below it are no detections, 0..1.
        nms_iou: IoU above which the worse of two boxes of a class is dropped.
        candidates: Best scores of an image that enter the suppression.
        detections: Slots for detections of an image.

    Raises:
        ValueError: The levels differ in channels, or their number does not suit the normalisation.
    """

    bases: Tensor

    def __init__(
        self,
        levels: list[Level],
        num_classes: int,
        anchor_scale: float = 4.0,
        group_norm: bool = True,
        score_threshold: float = 0.001,
        nms_iou: float = 0.5,
        candidates: int = 1000,
        detections: int = 100,
    ) -> None:
        super().__init__()
        channels = equal_channels(self, levels, grouped=group_norm)
        self.strides = [level.stride for level in levels]
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates = candidates
        self.detections = detections
        scales = [anchor_scale * 2 ** (i / _SIZES) for i in range(_SIZES)]
        self.register_buffer("bases", base_anchors(self.strides, scales, _ASPECT_RATIOS), persistent=False)
        self.anchors_per_cell = _SIZES * len(_ASPECT_RATIOS)
        self.towers = RetinaNetHead(channels, self.anchors_per_cell, num_classes, _group_norm if group_norm else None)

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """In input pixels, see :class:`~detframe.models.heads.base.Head`."""
        class_logits, offsets, anchors = self.predict(features)
        boxes = clip_boxes(decode_boxes(offsets, anchors), image_size[0], image_size[1])
        return best_candidates(boxes, class_logits.sigmoid(), self.score_threshold, self.candidates)

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits ``[B, A, C]`` and encoded boxes ``[B, A, 4]``, float32, of anchors ``[A, 4]``."""
        found: dict[str, Tensor] = self.towers(features)
        anchors = grid_anchors(grid_cells(features, self.strides, 0.0), self.bases)
        return found["cls_logits"].float(), found["bbox_regression"].float(), anchors

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``class`` and ``box``, each divided by the positives of its image and averaged over images."""
        class_logits, offsets, anchors = self.predict(features)
        anchors = anchors.expand(len(class_logits), -1, -1)
        assigned = assign_by_iou(anchors, targets, positive_iou=0.5, negative_iou=0.4, low_quality=True)
        target_boxes, labels = assigned_objects(assigned, targets)
        positive = assigned.positive[..., None]

        wanted = torch.zeros_like(class_logits).scatter(2, labels[..., None], assigned.quality[..., None])
        class_loss = sigmoid_focal_loss(class_logits, wanted) * ~assigned.ignored[..., None]
        target_offsets = encode_boxes(torch.where(positive, target_boxes, anchors), anchors)
        box_loss = functional.l1_loss(offsets, target_offsets, reduction="none") * positive

        normaliser = assigned.positive.sum(dim=1).clamp(min=1)
        return {
            "class": (class_loss.sum(dim=(1, 2)) / normaliser).mean(),
            "box": (box_loss.sum(dim=(1, 2)) / normaliser).mean(),
        }

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """The class convolution has, for each anchor of a cell, a row per class."""
        rows = torch.arange(self.anchors_per_cell * num_classes).view(self.anchors_per_cell, num_classes).T
        return {f"towers.classification_head.cls_logits.{kind}": rows for kind in ("weight", "bias")}


def _group_norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels)
