"""The head of RT-DETRv2: every decoder layer corrects the boxes directly.

Postponed annotations would break TorchScript here, which reads the types of the methods.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detframe.models.deformable_attention import Grid, ProjectedDeformableAttention
from detframe.models.heads.detr import (
    MLP,
    DecoderLayer,
    DETRHead,
    Prediction,
    inverse_sigmoid,
    no_distributions,
    score_head,
    silent,
)
from detframe.structures import Level


class RTDETRHead(DETRHead):
    """Head of RT-DETRv2 (Lv et al., 2024), to be used behind a :class:`~detframe.models.hybrid_encoder.HybridEncoder`.

    Args:
        levels: Channels and stride of the feature maps, finest first.
        num_classes: C.
        channels: Channels of the decoder; null takes those of the levels where they agree, else 256.
        queries: Queries of an image; fewer where the maps have fewer cells.
        layers: Decoder layers.
        heads: Attention heads; divides ``channels``.
        points: Points that an attention head reads: a number per level, or one for all.
        feedforward: Channels inside the decoder's feed-forward networks.
        denoising: Objects with noise that an image trains on beside its queries, 0 for none.
        label_noise: Twice the share of their labels that are drawn anew, 0..1.
        box_noise: How far their sides move, in halves of the box's sides.
        score_threshold: Scores at or below it are no detections, 0..1.
        detections: Slots for detections of an image.
        class_weight: Weight of the varifocal class loss.
        l1_weight: Weight of the L1 box loss.
        giou_weight: Weight of the GIoU box loss.

    Raises:
        ValueError: The levels do not suit the head.
    """

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
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        score_threshold: float = 0.001,
        detections: int = 100,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
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
        width = self.channels
        self.layers = nn.ModuleList(RTDETRLayer(width, heads, feedforward, self.points) for _ in range(layers))
        self.dec_score_head = nn.ModuleList(score_head(width, num_classes) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(silent(MLP(width, width, 4, 3)) for _ in range(layers))

    def decode(
        self, content: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid], mask: Tensor | None
    ) -> list[Prediction]:
        """Predictions of every layer, see :class:`~detframe.models.heads.detr.DETRHead`."""
        predictions: list[Prediction] = []
        before = boxes
        for layer, to_scores, to_boxes in zip(self.layers, self.dec_score_head, self.dec_bbox_head):  # noqa: B905 - not scriptable
            boxes = before.detach()
            position = self.query_pos_head(boxes.to(content.dtype))
            content = layer(content, position, boxes, memory, grids, mask)
            change = to_boxes(content).float()
            # The layer before learns from this one's boxes too ("look forward twice", DINO, section 3.5).
            learnt = (change + inverse_sigmoid(before)).sigmoid()
            logits = to_scores(content).float()
            predictions.append(Prediction(logits, learnt, no_distributions(boxes)))
            before = (change + inverse_sigmoid(boxes)).sigmoid()
        return predictions


class RTDETRLayer(DecoderLayer):
    """A decoder layer that adds what it read to the query.

    Args:
        channels: Channels of queries and maps.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the feed-forward network.
        points: Points that a head reads from each level.
    """

    def __init__(self, channels: int, heads: int, feedforward: int, points: Sequence[int]) -> None:
        super().__init__(channels, heads, feedforward, ProjectedDeformableAttention(channels, heads, points))
        self.norm2 = nn.LayerNorm(channels)

    def join(self, query: Tensor, read: Tensor) -> Tensor:
        """The query with what it read, both ``[B, Q, channels]``."""
        joined: Tensor = self.norm2(query + read)
        return joined
