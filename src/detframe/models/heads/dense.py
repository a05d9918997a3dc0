"""The anchor-free dense head: every cell of every level predicts class scores and the distances to a box's sides.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from detframe.boxes import clip_boxes
from detframe.models.anchors import Cells, grid_cells
from detframe.models.assigners import Assigner, TaskAlignedAssigner, assigned_objects
from detframe.models.heads.base import NMSHead
from detframe.models.losses import distribution_focal_loss, masked_giou_loss, varifocal_loss
from detframe.models.postprocess import best_candidates
from detframe.structures import Detections, Level, Targets


class DenseHead(NMSHead):
    """Decoupled anchor-free head: varifocal class loss, GIoU and distribution focal box loss.

    Args:
        levels: Channels and stride of the feature maps.
        num_classes: C.
        width: Channels of the towers.
        depth: 3x3 convolutions of each of the two towers.
        bins: Bins of the distance distribution: a side lies at most ``bins - 1`` strides from its cell.
        assigner: Says which cells learn which object.
        score_threshold: Scores at or below it are no detections, 0..1.
        nms_iou: IoU above which the worse of two boxes of a class is dropped.
        candidates: Best scores of an image that enter the suppression.
        detections: Slots for detections of an image.
        box_weight: Weight of the GIoU loss beside the class loss.
        distribution_weight: Weight of the distribution focal loss.
    """

    bin_values: Tensor

    def __init__(
        self,
        levels: list[Level],
        num_classes: int,
        width: int = 64,
        depth: int = 2,
        bins: int = 16,
        assigner: Callable[[], Assigner] = TaskAlignedAssigner,
        score_threshold: float = 0.001,
        nms_iou: float = 0.6,
        candidates: int = 500,
        detections: int = 100,
        box_weight: float = 2.5,
        distribution_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.strides = [level.stride for level in levels]
        self.num_classes = num_classes
        self.depth = depth
        self.bins = bins
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates = candidates
        self.detections = detections
        self.box_weight = box_weight
        self.distribution_weight = distribution_weight
        self.assigner = assigner()
        self.class_branches = nn.ModuleList(_branch(level.channels, width, depth, num_classes) for level in levels)
        self.box_branches = nn.ModuleList(_branch(level.channels, width, depth, 4 * bins) for level in levels)
        self.register_buffer("bin_values", torch.arange(bins, dtype=torch.float32), persistent=False)
        for class_branch, box_branch in zip(self.class_branches, self.box_branches, strict=True):
            # So that the first steps are not spent on learning that nearly every cell is background (RetinaNet, 4.1).
            nn.init.constant_(class_branch[-1].bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[index]
            nn.init.constant_(box_branch[-1].bias, 0.0)  # type: ignore[index]

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """In input pixels, see :class:`~detframe.models.heads.base.Head`."""
        class_logits, box_logits, cells = self.predict(features)
        boxes = clip_boxes(self.decode(box_logits, cells), image_size[0], image_size[1])
        return best_candidates(boxes, class_logits.sigmoid(), self.score_threshold, self.candidates)

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Cells]:
        """Raw predictions: class logits ``[B, A, C]`` and box logits ``[B, A, 4, bins]``, float32, of A cells."""
        class_logits: list[Tensor] = []
        box_logits: list[Tensor] = []
        for i, branch in enumerate(self.class_branches):
            class_logits.append(branch(features[i]).flatten(2).transpose(1, 2).float())
        for i, branch in enumerate(self.box_branches):
            box_logits.append(branch(features[i]).flatten(2).transpose(1, 2).float())
        boxes = torch.cat(box_logits, dim=1)
        boxes = boxes.reshape(boxes.shape[0], -1, 4, self.bins)
        return torch.cat(class_logits, dim=1), boxes, grid_cells(features, self.strides, 0.5)

    def decode(self, box_logits: Tensor, cells: Cells) -> Tensor:
        """Boxes ``[B, A, 4]`` in input pixels: each side at the mean of its distribution (GFL, eq. 4)."""
        distances = (box_logits.softmax(dim=-1) * self.bin_values).sum(dim=-1) * cells.strides[:, None]
        return torch.cat((cells.centres - distances[..., :2], cells.centres + distances[..., 2:]), dim=-1)

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """The last convolution of each class branch has one row per class."""
        rows = torch.arange(num_classes)[:, None]
        return {
            f"class_branches.{i}.{self.depth}.{kind}": rows
            for i in range(len(self.class_branches))
            for kind in ("weight", "bias")
        }

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``class``, ``box`` and ``distribution``, each weighted and divided by the sum of qualities."""
        class_logits, box_logits, cells = self.predict(features)
        boxes = self.decode(box_logits, cells)
        assigned = self.assigner(class_logits.detach().sigmoid(), boxes.detach(), cells, targets)
        target_boxes, labels = assigned_objects(assigned, targets)

        quality = torch.zeros_like(class_logits).scatter(2, labels[..., None], assigned.quality[..., None])
        class_loss = varifocal_loss(class_logits, quality) * ~assigned.ignored[..., None]

        # Weighting all cells, most of them by zero, keeps shapes fixed: no host synchronisation.
        weight = assigned.quality * assigned.positive
        box_loss = masked_giou_loss(boxes, target_boxes, assigned.positive) * weight
        centres = cells.centres
        distances = torch.cat((centres - target_boxes[..., :2], target_boxes[..., 2:] - centres), dim=-1)
        side_loss = distribution_focal_loss(box_logits, distances / cells.strides[:, None]) * weight

        normaliser = assigned.quality.sum().clamp(min=1)
        return {
            "class": class_loss.sum() / normaliser,
            "box": self.box_weight * box_loss.sum() / normaliser,
            "distribution": self.distribution_weight * side_loss.sum() / normaliser,
        }


def _branch(channels: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    tower = [
        Conv2dNormActivation(channels if i == 0 else width, width, 3, activation_layer=nn.SiLU) for i in range(depth)
    ]
    return nn.Sequential(*tower, nn.Conv2d(width if depth else channels, outputs, 1))
