"""Faster R-CNN's heads: proposals, then classes and boxes of each; torchvision's modules, so that its weights fit.

Postponed annotations would break TorchScript here, which reads the types of the buffers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from detframe.boxes import clip_boxes, decode_boxes, encode_boxes
from detframe.models.anchors import base_anchors, grid_anchors, grid_cells
from detframe.models.assigners import Assignment, assign_by_iou, assigned_objects
from detframe.models.heads.base import NMSHead, equal_channels
from detframe.models.postprocess import best_candidates
from detframe.models.proposals import roi_align_pyramid, sample_balanced, select_proposals
from detframe.structures import Detections, Level, Targets

_ASPECT_RATIOS = [0.5, 1.0, 2.0]
_ROI_SIZE = 7
_BETA = 1 / 9  # where the smooth L1 loss turns linear, torchvision's


class TwoStageHead(NMSHead):
    """Faster R-CNN on a pyramid (Ren et al., 2015; Lin et al., 2017): a proposal network, and a head for proposals.

    Args:
        levels: Channels and stride of the feature maps; all of the same channels.
        num_classes: C.
        anchor_scale: Side of a square anchor in strides; each cell has three of that area.
        roi_levels: So many of the finest levels are what proposals are read from.
        hidden: Width of the head for proposals.
        rpn_depth: Convolutions of the proposal network.
        box_depth: Convolutions of the head for proposals before its linear layer; with 0 it has two linear layers.
        proposals: Proposals of an image.
        smallest_proposal: Proposals narrower or lower than this many pixels are none.
        proposals_per_level: Best anchors of a level that enter the suppression.
        samples: Proposals of an image that learn, a quarter of them positive at most.
        score_threshold: Scores at or below it are no detections, 0..1.
        nms_iou: IoU above which the worse of two boxes of a class is dropped.
        candidates: Best scores of an image that enter the suppression.
        detections: Slots for detections of an image.

    Raises:
        ValueError: The levels differ in channels.
    """

    bases: Tensor

    def __init__(
        self,
        levels: list[Level],
        num_classes: int,
        anchor_scale: float = 8.0,
        roi_levels: int = 4,
        hidden: int = 256,
        rpn_depth: int = 1,
        box_depth: int = 0,
        proposals: int = 300,
        smallest_proposal: float = 1e-3,
        proposals_per_level: int = 500,
        samples: int = 128,
        score_threshold: float = 0.001,
        nms_iou: float = 0.5,
        candidates: int = 500,
        detections: int = 100,
    ) -> None:
        super().__init__()
        channels = equal_channels(self, levels, grouped=False)
        self.strides = [level.stride for level in levels]
        self.roi_strides = self.strides[:roi_levels]
        self.num_classes = num_classes
        self.proposals = proposals
        self.smallest_proposal = smallest_proposal
        self.proposals_per_level = proposals_per_level
        self.samples = samples
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.candidates = candidates
        self.detections = detections
        self.register_buffer("bases", base_anchors(self.strides, [anchor_scale], _ASPECT_RATIOS), persistent=False)
        self.rpn = RPNHead(channels, len(_ASPECT_RATIOS), rpn_depth)
        self.box_head: nn.Module = TwoMLPHead(channels * _ROI_SIZE**2, hidden)
        if box_depth:
            size = (channels, _ROI_SIZE, _ROI_SIZE)
            self.box_head = FastRCNNConvFCHead(size, [channels] * box_depth, [hidden], nn.BatchNorm2d)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes + 1)

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """In input pixels, see :class:`~detframe.models.heads.base.Head`."""
        objectness, offsets, anchors, counts = self.predict_anchors(features)
        proposals, valid = self.propose(objectness, offsets, anchors, counts, image_size)
        class_logits, box_offsets = self.predict_boxes(features, proposals)
        scores = class_logits.softmax(dim=-1)[..., 1:] * valid[..., None]
        boxes = decode_boxes(box_offsets[:, :, 1:], proposals[:, :, None], (10.0, 10.0, 5.0, 5.0))
        boxes = clip_boxes(boxes, image_size[0], image_size[1])  # [B, P, C, 4]
        return best_candidates(boxes, scores, self.score_threshold, self.candidates)

    def predict_anchors(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Objectness logits ``[B, A]``, encoded boxes ``[B, A, 4]``, anchors ``[A, 4]`` and their count by level."""
        logits, encoded = self.rpn(features)
        objectness: list[Tensor] = []
        offsets: list[Tensor] = []
        counts: list[int] = []
        for i, level in enumerate(logits):
            objectness.append(level.permute(0, 2, 3, 1).flatten(1).float())
            offsets.append(encoded[i].permute(0, 2, 3, 1).reshape(level.shape[0], -1, 4).float())
            counts.append(level.shape[1] * level.shape[2] * level.shape[3])
        anchors = grid_anchors(grid_cells(features, self.strides, 0.0), self.bases)
        return torch.cat(objectness, dim=1), torch.cat(offsets, dim=1), anchors, counts

    def propose(
        self, objectness: Tensor, offsets: Tensor, anchors: Tensor, counts: list[int], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Proposals ``[B, P, 4]`` in input pixels and which are any; nothing is learned through them."""
        boxes = clip_boxes(decode_boxes(offsets.detach(), anchors), image_size[0], image_size[1])
        return select_proposals(
            boxes,
            objectness.detach().sigmoid(),
            counts,
            self.smallest_proposal,
            self.proposals_per_level,
            0.7,
            self.proposals,
        )

    def predict_boxes(self, features: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``[B, P, C + 1]``, background first, and encoded boxes ``[B, P, C + 1, 4]``, float32."""
        batch, count = proposals.shape[0], proposals.shape[1]
        levels = len(self.roi_strides)
        pooled = roi_align_pyramid(features[:levels], self.roi_strides, proposals, 7)
        class_logits, offsets = self.box_predictor(self.box_head(pooled))
        return class_logits.float().view(batch, count, -1), offsets.float().view(batch, count, -1, 4)

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``objectness`` and ``proposal`` of the first stage, ``class`` and ``box`` of the second."""
        objectness, offsets, anchors, counts = self.predict_anchors(features)
        spread = anchors.expand(len(objectness), -1, -1)
        assigned = assign_by_iou(spread, targets, positive_iou=0.7, negative_iou=0.3, low_quality=True)
        learns = sample_balanced(assigned.positive, _negative(assigned), 256, 0.5)
        wanted = assigned.positive.float()
        objectness_loss = functional.binary_cross_entropy_with_logits(objectness, wanted, reduction="none")
        target_boxes, _ = assigned_objects(assigned, targets)
        positive = assigned.positive & learns
        proposal_loss = _box_loss(offsets, target_boxes, spread, positive, (1.0, 1.0, 1.0, 1.0))

        proposals, labels, target_boxes, positive, sampled = self.sample_proposals(
            *self.propose(objectness, offsets, anchors, counts, image_size), targets
        )
        class_logits, box_offsets = self.predict_boxes(features, proposals)
        class_loss = functional.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), reduction="none")
        own = box_offsets.gather(2, labels[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        box_loss = _box_loss(own, target_boxes, proposals, positive, (10.0, 10.0, 5.0, 5.0))

        anchors_sampled, boxes_sampled = learns.sum().clamp(min=1), sampled.sum().clamp(min=1)
        return {
            "objectness": (objectness_loss * learns).sum() / anchors_sampled,
            "proposal": proposal_loss.sum() / anchors_sampled,
            "class": (class_loss * sampled.flatten()).sum() / boxes_sampled,
            "box": box_loss.sum() / boxes_sampled,
        }

    @torch.no_grad()
    def sample_proposals(
        self, proposals: Tensor, valid: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Proposals that learn, of those found and of the objects themselves, ``S`` of each image.

        Returns:
            Boxes ``[B, S, 4]``, labels ``[B, S]`` with 0 for background, boxes to reach ``[B, S, 4]``, and which are
            positive and which are any, ``[B, S]`` bool.
        """
        proposals = torch.cat((proposals, targets.boxes), dim=1)
        valid = torch.cat((valid, targets.valid & ~targets.ignore), dim=1)
        assigned = assign_by_iou(proposals, targets, positive_iou=0.5, negative_iou=0.5, low_quality=False)
        learns = sample_balanced(assigned.positive & valid, _negative(assigned) & valid, self.samples, 0.25)
        sampled, index = learns.byte().topk(min(self.samples, learns.shape[1]), dim=1)
        target_boxes, labels = assigned_objects(assigned, targets)
        positive = (assigned.positive & learns).gather(1, index)
        rows = index[..., None].expand(-1, -1, 4)
        labels = torch.where(positive, labels.gather(1, index) + 1, 0)
        return proposals.gather(1, rows), labels, target_boxes.gather(1, rows), positive, sampled.bool()

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """The predictor has one row of classes and four of boxes for each class, after those of the background."""
        classes = torch.arange(1, num_classes + 1)[:, None]
        boxes = classes * 4 + torch.arange(4)
        return {
            f"box_predictor.{name}.{kind}": rows
            for name, rows in (("cls_score", classes), ("bbox_pred", boxes))
            for kind in ("weight", "bias")
        }


def _negative(assigned: Assignment) -> Tensor:
    return ~assigned.positive & ~assigned.ignored


def _box_loss(
    offsets: Tensor, boxes: Tensor, references: Tensor, positive: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Smooth L1 loss of encoded boxes ``[B, A, 4]``, zero where not positive."""
    own = positive[..., None]
    unit = references.new_tensor([0.0, 0.0, 1.0, 1.0])  # padding has no area, and its logarithm no value
    references = torch.where(own, references, unit)
    wanted = encode_boxes(torch.where(own, boxes, references), references, weights)
    return functional.smooth_l1_loss(offsets, wanted, beta=_BETA, reduction="none") * own
