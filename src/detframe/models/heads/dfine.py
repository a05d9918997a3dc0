"""The head of D-FINE: decoder layers refine the distributions of where a box's sides lie.

Postponed annotations would break TorchScript here, which reads the types of the buffers and the methods.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detframe.models.deformable_attention import DeformableAttention, Grid
from detframe.models.fine_distribution import (
    boxes_from_distributions,
    distillation_loss,
    fine_grained_loss,
    offset_values,
    offsets_of,
)
from detframe.models.heads.detr import (
    MLP,
    DecoderLayer,
    DETRHead,
    Prediction,
    Supervision,
    inverse_sigmoid,
    no_distributions,
    score_head,
    silent,
)
from detframe.models.set_prediction import Objects, corners, matched_boxes, matched_iou, pairs, vote
from detframe.structures import Level, Targets


class DFINEHead(DETRHead):
    """Head of D-FINE (Peng et al., 2024), to be used behind an ``ELANHybridEncoder``.

    Args:
        levels: Channels and stride of the feature maps, finest first.
        num_classes: C.
        channels: Channels of the decoder; null takes those of the levels where they agree, else 256.
        queries: Queries of an image; fewer where the maps have fewer cells.
        layers: Decoder layers.
        heads: Attention heads; divides ``channels``.
        points: Points that an attention head reads: a number per level, or one for all.
        feedforward: Channels inside the decoder's feed-forward networks.
        offset_bins: Bins of the distribution of a side's offset, one less than its values; even.
        offset_bound: Where the dense part of the offsets ends, as a share of the box's side.
        offset_scale: What fraction of the box's side the offsets count in.
        denoising: Objects with noise that an image trains on beside its queries, 0 for none.
        label_noise: Twice the share of their labels that are drawn anew, 0..1.
        box_noise: How far their sides move, in halves of the box's sides.
        score_threshold: Scores at or below it are no detections, 0..1.
        detections: Slots for detections of an image.
        class_weight: Weight of the varifocal class loss.
        l1_weight: Weight of the L1 box loss.
        giou_weight: Weight of the GIoU box loss.
        fgl_weight: Weight of the fine-grained localisation loss (FGL).
        ddf_weight: Weight of the loss by which layers learn from the last one (DDF).

    Raises:
        ValueError: The levels do not suit the head.
    """

    up: Tensor
    reg_scale: Tensor

    def __init__(
        self,
        levels: list[Level],
        num_classes: int,
        channels: int | None = None,
        queries: int = 300,
        layers: int = 3,
        heads: int = 8,
        points: int | Sequence[int] = 4,
        feedforward: int = 1024,
        offset_bins: int = 32,
        offset_bound: float = 0.5,
        offset_scale: float = 4.0,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        score_threshold: float = 0.001,
        detections: int = 100,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        fgl_weight: float = 0.15,
        ddf_weight: float = 1.5,
    ) -> None:
        super().__init__(
            levels,
            num_classes,
            channels=channels,
            queries=queries,
            heads=heads,
            points=points,
            denoising=denoising,
            label_noise=label_noise,
            box_noise=box_noise,
            score_threshold=score_threshold,
            detections=detections,
            class_weight=class_weight,
            l1_weight=l1_weight,
            giou_weight=giou_weight,
        )
        self.bins = offset_bins
        self.fgl_weight = fgl_weight
        self.ddf_weight = ddf_weight
        # Saved with the weights, which mean nothing with others.
        self.register_buffer("up", torch.tensor([offset_bound]))
        self.register_buffer("reg_scale", torch.tensor([offset_scale]))
        width = self.channels
        self.layers = nn.ModuleList(DFINELayer(width, heads, feedforward, self.points) for _ in range(layers))
        self.lqe_layers = nn.ModuleList(LocationQuality(offset_bins) for _ in range(layers))
        self.dec_score_head = nn.ModuleList(score_head(width, num_classes) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(silent(MLP(width, width, 4 * (offset_bins + 1), 3)) for _ in range(layers))
        self.pre_bbox_head = silent(MLP(width, width, 4, 3))

    def make_projection(self, level: Level) -> nn.Module:
        """What brings a feature map to the decoder's channels: nothing where it has them."""
        return nn.Identity() if level.channels == self.channels else super().make_projection(level)

    def decode(
        self, content: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid], mask: Tensor | None
    ) -> list[Prediction]:
        """A first direct prediction, then those of every layer, which move the sides of the first one's boxes."""
        values = offset_values(self.bins, self.up, self.reg_scale)
        predictions: list[Prediction] = []
        boxes = boxes.detach()
        reference = boxes
        before = torch.zeros_like(content)
        distributions = boxes.new_zeros([boxes.shape[0], boxes.shape[1], 4, self.bins + 1])
        for layer, quality, to_scores, to_sides in zip(  # noqa: B905 - not scriptable
            self.layers, self.lqe_layers, self.dec_score_head, self.dec_bbox_head
        ):
            position = self.query_pos_head(boxes.to(content.dtype)).clamp(-10, 10)
            content = layer(content, position, boxes, memory, grids, mask)
            scores = to_scores(content).float()
            if len(predictions) == 0:
                first = (self.pre_bbox_head(content).float() + inverse_sigmoid(boxes)).sigmoid()
                predictions.append(Prediction(scores, first, no_distributions(first)))
                reference = first.detach()
            distributions = distributions + to_sides(content + before).float().unflatten(2, [4, self.bins + 1])
            found = boxes_from_distributions(reference, distributions, values, self.reg_scale)
            predictions.append(Prediction(scores + quality(distributions, content), found, distributions))
            boxes = found.detach()
            before = content.detach()
        return predictions

    def match_boxes(self, matches: Tensor, objects: Objects) -> Tensor:
        """The object that most layers match a query with, for every layer: boxes learn from more pairs."""
        return vote(matches, objects).expand_as(matches)

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts of :class:`~detframe.models.heads.detr.DETRHead`, and ``fgl`` and ``ddf``."""
        lesson = self.prepare(features, targets, image_size)
        share = matched_share(lesson.layers[0])
        distribution, distillation = [], []
        for first, *layers in (lesson.layers, lesson.noised) if lesson.noised else (lesson.layers,):
            reference = first.prediction.boxes.detach()
            distribution += [self.distribution_loss(layer, reference, lesson.objects) for layer in layers]
            distillation += [
                self_distillation_loss(layer, layers[-1].prediction, share, lesson.objects) for layer in layers[:-1]
            ]
        zero = share * 0
        return {
            **self.teach(lesson),
            "fgl": self.fgl_weight * torch.stack(distribution).sum(),
            "ddf": self.ddf_weight * torch.stack([zero, *distillation]).sum(),
        }

    def distribution_loss(self, layer: Supervision, reference: Tensor, objects: Objects) -> Tensor:
        """Fine-grained localisation loss per matched prediction, weighted by its IoU, a scalar."""
        prediction, match = layer.prediction, layer.box_match
        truth = offsets_of(corners(matched_boxes(match, objects)), reference, self.reg_scale)
        values = offset_values(self.bins, self.up, self.reg_scale)
        loss = fine_grained_loss(prediction.distributions, truth, values)
        return (loss * matched_iou(prediction.boxes, match, objects)).sum() / pairs(match)


def matched_share(layer: Supervision) -> Tensor:
    """What part of the distillation loss matched predictions make, 0..1: the roots of the counts balance them."""
    positive = (layer.box_match >= 0).sum().sqrt()
    negative = (layer.box_match < 0).sum().sqrt()
    return positive / (positive + negative)


def self_distillation_loss(layer: Supervision, teacher: Prediction, share: Tensor, objects: Objects) -> Tensor:
    """How far a layer's distributions are from the last layer's, a scalar (GO-LSD, D-FINE, section 4.2).

    Args:
        layer: Predictions of an earlier layer.
        teacher: Predictions of the last layer.
        share: Weight of the matched predictions, 0..1, see :func:`matched_share`.
        objects: Objects of the batch.
    """
    prediction, match = layer.prediction, layer.box_match
    matched = match >= 0
    others = layer.counted & ~matched
    confidence = teacher.logits.detach().sigmoid().amax(dim=-1)
    weight = torch.where(matched, matched_iou(prediction.boxes, match, objects), confidence)
    loss = distillation_loss(prediction.distributions, teacher.distributions) * weight
    return share * masked_mean(loss, matched) + (1 - share) * masked_mean(loss, others)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True, 0 where it is nowhere."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


class DFINELayer(DecoderLayer):
    """A decoder layer that weighs the query against what it read.

    Args:
        channels: Channels of queries and maps.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the feed-forward network.
        points: Points that a head reads from each level.
    """

    def __init__(self, channels: int, heads: int, feedforward: int, points: Sequence[int]) -> None:
        super().__init__(channels, heads, feedforward, DeformableAttention(channels, heads, points))
        self.gateway = Gateway(channels)

    def join(self, query: Tensor, read: Tensor) -> Tensor:
        """The query with what it read, both ``[B, Q, channels]``."""
        joined: Tensor = self.gateway(query, read)
        return joined


class Gateway(nn.Module):
    """Lets through of each of two inputs as much as both together ask for (D-FINE's target gating layer).

    Args:
        channels: Channels of each input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * channels, 2 * channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``[B, Q, channels]`` both and out."""
        of_first, of_second = self.gate(torch.cat((first, second), dim=-1)).sigmoid().chunk(2, dim=-1)
        passed: Tensor = self.norm(of_first * first + of_second * second)
        return passed


class LocationQuality(nn.Module):
    """What the sharpness of a box's distributions adds to its class logits (GFLv2, Li et al., 2021).

    Args:
        bins: ``offset_bins`` of :class:`DFINEHead`.
        top: How many of the largest probabilities of a side are looked at.
    """

    def __init__(self, bins: int, top: int = 4) -> None:
        super().__init__()
        self.top = min(top, bins + 1)
        self.reg_conf = silent(MLP(4 * (self.top + 1), 64, 1, 2))

    def forward(self, distributions: Tensor, content: Tensor) -> Tensor:
        """``[B, Q, 4, bins + 1]`` float32 logits in, ``[B, Q, 1]`` out; the content gives the type of the weights."""
        largest = distributions.softmax(dim=-1).topk(self.top, dim=-1).values
        statistics = torch.cat((largest, largest.mean(dim=-1, keepdim=True)), dim=-1).flatten(2)
        quality: Tensor = self.reg_conf(statistics.to(content.dtype))
        return quality
