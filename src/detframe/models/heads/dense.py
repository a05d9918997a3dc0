"""The anchor-free dense head: every cell of every level predicts class scores and the distances to a box's sides.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, generalized_box_iou_loss

from detframe.boxes import clip_boxes
from detframe.models.assigners import TaskAlignedAssigner
from detframe.models.heads.base import Head
from detframe.models.losses import distribution_focal_loss, varifocal_loss
from detframe.models.postprocess import select_detections
from detframe.structures import Detections, Level, Targets


class DenseHead(Head):
    """Decoupled anchor-free head: varifocal class loss, GIoU and distribution focal box loss, task-aligned assignment.

    Args:
        levels: Channels and stride of the feature maps.
        num_classes: C.
        width: Channels of the towers.
        depth: 3x3 convolutions of each of the two towers.
        bins: Bins of the distance distribution: a side lies at most ``bins - 1`` strides from its cell.
        top_k: Cells that learn an object.
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
        top_k: int = 10,
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
        self.bins = bins
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates = candidates
        self.detections = detections
        self.box_weight = box_weight
        self.distribution_weight = distribution_weight
        self.assigner = TaskAlignedAssigner(top_k)
        self.class_branches = nn.ModuleList(_branch(level.channels, width, depth, num_classes) for level in levels)
        self.box_branches = nn.ModuleList(_branch(level.channels, width, depth, 4 * bins) for level in levels)
        self.register_buffer("bin_values", torch.arange(bins, dtype=torch.float32), persistent=False)
        for class_branch, box_branch in zip(self.class_branches, self.box_branches, strict=True):
            # So that the first steps are not spent on learning that nearly every cell is background (RetinaNet, 4.1).
            nn.init.constant_(class_branch[-1].bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[index]
            nn.init.constant_(box_branch[-1].bias, 0.0)  # type: ignore[index]

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """Detections in input pixels, see :class:`~detframe.models.heads.base.Head`."""
        class_logits, box_logits, points, strides = self.predict(features)
        boxes = clip_boxes(self.decode(box_logits, points, strides), image_size[0], image_size[1])
        return select_detections(
            boxes, class_logits.sigmoid(), self.score_threshold, self.nms_iou, self.candidates, self.detections
        )

    def predict(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Raw predictions of all ``A`` cells of all levels.

        Returns:
            Class logits ``[B, A, C]`` and box logits ``[B, A, 4, bins]`` in float32, points ``[A, 2]`` (x, y) in
            input pixels, strides ``[A]``.
        """
        class_logits: list[Tensor] = []
        box_logits: list[Tensor] = []
        points: list[Tensor] = []
        strides: list[Tensor] = []
        for i, branch in enumerate(self.class_branches):
            class_logits.append(branch(features[i]).flatten(2).transpose(1, 2).float())
        for i, branch in enumerate(self.box_branches):
            box_logits.append(branch(features[i]).flatten(2).transpose(1, 2).float())
        for i, stride in enumerate(self.strides):
            height, width = features[i].shape[2], features[i].shape[3]
            x = (torch.arange(width, device=features[i].device) + 0.5) * stride
            y = (torch.arange(height, device=features[i].device) + 0.5) * stride
            grid = torch.stack((x.repeat(height), y[:, None].expand(-1, width).flatten()), dim=-1)
            points.append(grid)
            strides.append(torch.full_like(grid[:, 0], float(stride)))
        boxes = torch.cat(box_logits, dim=1)
        boxes = boxes.reshape(boxes.shape[0], -1, 4, self.bins)
        return torch.cat(class_logits, dim=1), boxes, torch.cat(points), torch.cat(strides)

    def decode(self, box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Boxes ``[B, A, 4]`` in input pixels: each side at the mean of its distribution (GFL, eq. 4)."""
        distances = (box_logits.softmax(dim=-1) * self.bin_values).sum(dim=-1) * strides[:, None]
        return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``class``, ``box`` and ``distribution``, each weighted and divided by the sum of qualities."""
        class_logits, box_logits, points, strides = self.predict(features)
        boxes = self.decode(box_logits, points, strides)
        assigned = self.assigner(class_logits.detach().sigmoid(), boxes.detach(), points, strides, targets)

        if targets.boxes.shape[1]:
            target_boxes = targets.boxes.gather(1, assigned.target[..., None].expand(-1, -1, 4))
            labels = targets.labels.gather(1, assigned.target)
        else:
            target_boxes = boxes.detach()
            labels = assigned.target
        quality = torch.zeros_like(class_logits).scatter(2, labels[..., None], assigned.quality[..., None])
        class_loss = varifocal_loss(class_logits, quality) * ~assigned.ignored[..., None]

        # Weighting all cells, most of them by zero, keeps shapes fixed: no host synchronisation.
        weight = assigned.quality * assigned.positive
        safe_boxes = torch.where(assigned.positive[..., None], target_boxes, boxes.detach() + boxes.new_tensor(_UNIT))
        box_loss = generalized_box_iou_loss(boxes, safe_boxes) * weight
        distances = torch.cat((points - target_boxes[..., :2], target_boxes[..., 2:] - points), dim=-1)
        side_loss = distribution_focal_loss(box_logits, distances / strides[:, None]) * weight

        normaliser = assigned.quality.sum().clamp(min=1)
        return {
            "class": class_loss.sum() / normaliser,
            "box": self.box_weight * box_loss.sum() / normaliser,
            "distribution": self.distribution_weight * side_loss.sum() / normaliser,
        }


_UNIT = (0.0, 0.0, 1.0, 1.0)  # gives the boxes of negatives an area, so that their GIoU, weighted by zero, is finite


def _branch(channels: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    tower = [
        Conv2dNormActivation(channels if i == 0 else width, width, 3, activation_layer=nn.SiLU) for i in range(depth)
    ]
    return nn.Sequential(*tower, nn.Conv2d(width if depth else channels, outputs, 1))
