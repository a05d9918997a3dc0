"""What the real-time DETR heads share: queries chosen from the feature maps, a deformable decoder, set prediction.

Postponed annotations would break TorchScript here, which reads the types of the named tuple and the methods.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detframe.models.anchors import grid_positions
from detframe.models.deformable_attention import DeformableAttention, Grid
from detframe.models.denoising import attention_mask, noise_objects
from detframe.models.heads.base import Head
from detframe.models.hybrid_encoder import ConvNorm
from detframe.models.postprocess import padded_topk
from detframe.models.set_prediction import (
    Objects,
    box_losses,
    class_loss,
    in_ignore_region,
    in_image,
    match_predictions,
    pack_objects,
)
from detframe.structures import Detections, Level, Targets


class Prediction(NamedTuple):
    """What one layer says of each query."""

    logits: Tensor  # [B, Q, C] float32
    boxes: Tensor  # [B, Q, 4] float32, cxcywh in 0..1 of the image
    distributions: Tensor  # [B, Q, 4, bins] float32 logits of the sides; no bins where boxes are regressed directly


class Supervision(NamedTuple):
    """A prediction and what it is to learn."""

    prediction: Prediction
    class_match: Tensor  # [B, Q] int64, row of the object whose class it learns, -1 for none
    box_match: Tensor  # [B, Q] int64, row of the object whose box it learns, -1 for none
    counted: Tensor  # [B, Q] bool, False where it learns nothing at all


class Lesson(NamedTuple):
    """Everything that a batch teaches."""

    objects: Objects
    proposals: Supervision  # the chosen queries, before the decoder
    layers: list[Supervision]  # the decoder's predictions, in order
    noised: list[Supervision]  # the same of the denoising queries; none outside training


class DETRHead(Head):
    """Base of the DETR heads: subclasses decode.

    The cells that score best become queries (RT-DETR, Zhao et al., 2024, section 4.3), decoder layers look at the maps
    around each query's box and correct it, and each object is matched with one query, so that no suppression is needed.

    Args:
        levels: Channels and stride of the feature maps, finest first.
        num_classes: C.
        channels: Channels of the decoder; null takes those of the levels where they agree, else 256.
        queries: Queries of an image; fewer where the maps have fewer cells.
        heads: Attention heads; divides ``channels``.
        points: Points that an attention head reads: a number per level, or one for all.
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
        channels: int | None,
        queries: int,
        heads: int,
        points: int | Sequence[int],
        denoising: int,
        label_noise: float,
        box_noise: float,
        score_threshold: float,
        detections: int,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
    ) -> None:
        super().__init__()
        self.channels = channels or (levels[0].channels if len({level.channels for level in levels}) == 1 else 256)
        self.points = [points] * len(levels) if isinstance(points, int) else list(points)
        self._require_fit(levels, heads)
        self.strides = [level.stride for level in levels]
        self.num_classes = num_classes
        self.queries = queries
        self.denoising = denoising
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.score_threshold = score_threshold
        self.detections = detections
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

        self.input_proj = nn.ModuleList(self.make_projection(level) for level in levels)
        projection = nn.Linear(self.channels, self.channels)
        nn.init.xavier_uniform_(projection.weight)
        self.enc_output = nn.Sequential(OrderedDict(proj=projection, norm=nn.LayerNorm(self.channels)))
        self.enc_score_head = score_head(self.channels, num_classes)
        self.enc_bbox_head = silent(MLP(self.channels, self.channels, 4, 3))
        self.query_pos_head = MLP(4, 2 * self.channels, self.channels, 2)
        for layer in self.query_pos_head.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        if denoising:
            self.denoising_class_embed = nn.Embedding(num_classes + 1, self.channels, padding_idx=num_classes)

    def _require_fit(self, levels: list[Level], heads: int) -> None:
        if not levels or len(self.points) != len(levels) or self.channels % heads:
            name = type(self).__name__
            given = ", ".join(f"{level.channels} channels at stride {level.stride}" for level in levels) or "none"
            raise ValueError(
                f"{name}: the levels ({given}) do not suit it. It needs one or more, `points` for each of them (given: "
                f"{self.points}), and `channels` ({self.channels}) in {heads} equal parts, one for each attention head."
            )

    def make_projection(self, level: Level) -> nn.Module:
        """What brings a feature map to the decoder's channels."""
        return ConvNorm(level.channels, self.channels, 1)

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """In input pixels, see :class:`~detframe.models.heads.base.Head`."""
        memory, grids = self.embed(features, image_size)
        content, proposals = self.select_queries(memory, grids)
        last = self.decode(content, proposals.boxes, memory, grids, None)[-1]
        return self.detect(last.logits, last.boxes, image_size)

    def embed(self, features: list[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, list[Grid]]:
        """The cells of all levels in one row, ``[B, S, channels]``, and where they lie."""
        rows: list[Tensor] = []
        grids: list[Grid] = []
        for i, projection in enumerate(self.input_proj):
            x = projection(features[i])
            rows.append(x.flatten(2).transpose(1, 2))
            stride = self.strides[i]
            grids.append(Grid(x.shape[2], x.shape[3], image_size[0] / stride, image_size[1] / stride))
        return torch.cat(rows, dim=1), grids

    def select_queries(self, memory: Tensor, grids: list[Grid]) -> tuple[Tensor, Prediction]:
        """The content ``[B, Q, channels]`` of the best cells, and what they propose."""
        anchors, usable = make_anchors(grids, memory.device)
        encoded = self.enc_output(memory * usable[:, None])
        logits = self.enc_score_head(encoded)
        count = min(self.queries, memory.shape[1])
        best = logits.amax(dim=-1).topk(count, dim=1).indices[..., None]  # [B, Q, 1]
        content = encoded.gather(1, best.expand(-1, -1, self.channels))
        anchors = anchors[None].expand(memory.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        boxes = (self.enc_bbox_head(content).float() + anchors).sigmoid()
        chosen = logits.gather(1, best.expand(-1, -1, self.num_classes)).float()
        return content, Prediction(chosen, boxes, no_distributions(boxes))

    def decode(
        self, content: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid], mask: Tensor | None
    ) -> list[Prediction]:
        """Predictions of queries, the last of them the best.

        Args:
            content: ``[B, Q, channels]``.
            boxes: ``[B, Q, 4]``, cxcywh in 0..1, where the queries begin.
            memory: ``[B, S, channels]``.
            grids: One per level.
            mask: ``[Q, Q]`` bool, which query must not look at which.
        """
        raise NotImplementedError

    def detect(self, logits: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Detections:
        """The best pairs of query and class, ``detections`` of them."""
        xyxy = in_image(boxes, image_size[0], image_size[1])
        proper = (xyxy[..., 2:] > xyxy[..., :2]).all(dim=-1)
        scores = (logits.sigmoid() * proper[..., None]).flatten(1)
        top, index = padded_topk(scores, self.detections)
        query = index // self.num_classes
        valid = top > self.score_threshold
        return Detections(
            boxes=xyxy.gather(1, query[..., None].expand(-1, -1, 4)) * valid[..., None],
            scores=top * valid,
            labels=index % self.num_classes * valid,
            valid=valid,
        )

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The parts ``class``, ``box`` (L1) and ``giou``, each weighted and summed over all predictions.

        Every layer's predictions learn, those before the decoder and, in training, those of denoising queries too. The
        loss of a set of predictions is divided by how many of them have an object.
        """
        return self.teach(self.prepare(features, targets, image_size))

    def teach(self, lesson: Lesson) -> dict[str, Tensor]:
        """Parts of the loss that all kinds of decoders have."""
        parts: dict[str, list[Tensor]] = {"class": [], "box": [], "giou": []}
        for prediction, class_match, box_match, counted in (lesson.proposals, *lesson.layers, *lesson.noised):
            boxes = prediction.boxes
            parts["class"].append(class_loss(prediction.logits, boxes, class_match, lesson.objects, counted))
            distance, giou = box_losses(boxes, box_match, lesson.objects)
            parts["box"].append(distance)
            parts["giou"].append(giou)
        weights = {"class": self.class_weight, "box": self.l1_weight, "giou": self.giou_weight}
        return {name: weights[name] * torch.stack(values).sum() for name, values in parts.items()}

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """Every layer that scores has a row per class, as has the embedding of noised objects."""
        rows = torch.arange(num_classes)[:, None]
        return {
            name: rows
            for name, _ in self.named_parameters()
            if "score_head." in name or name.startswith("denoising_class_embed.")
        }

    def prepare(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> Lesson:
        """Predict, and find out what each prediction is to learn."""
        memory, grids = self.embed(features, image_size)
        content, proposals = self.select_queries(memory, grids)
        objects = pack_objects(targets, image_size)
        queries, boxes = content.detach(), proposals.boxes.detach()
        noised, mask = None, None
        if self.training and self.denoising:
            noised = noise_objects(objects, self.num_classes, self.denoising, self.label_noise, self.box_noise)
            queries = torch.cat((self.denoising_class_embed(noised.labels).to(queries.dtype), queries), dim=1)
            boxes = torch.cat((noised.boxes, boxes), dim=1)
            mask = attention_mask(noised.group, content.shape[1])
        predictions = self.decode(queries, boxes, memory, grids, mask)

        split = queries.shape[1] - content.shape[1]
        found = [Prediction(*(field[:, split:] for field in prediction)) for prediction in predictions]
        sets = [proposals, *found]
        matches = match_predictions(
            [(prediction.logits.detach(), prediction.boxes.detach()) for prediction in sets], objects
        )
        box_matches = self.match_boxes(matches, objects)
        supervised = [
            Supervision(
                prediction, match, box_match, (match >= 0) | ~in_ignore_region(prediction.boxes, targets, image_size)
            )
            for prediction, match, box_match in zip(sets, matches, box_matches, strict=True)
        ]
        of_noised: list[Supervision] = []
        if noised is not None:
            for prediction in predictions:
                part = Prediction(*(field[:, :split] for field in prediction))
                ignored = in_ignore_region(part.boxes, targets, image_size) & (noised.match < 0)
                of_noised.append(Supervision(part, noised.match, noised.match, ~(noised.padding | ignored)))
        return Lesson(objects, supervised[0], supervised[1:], of_noised)

    def match_boxes(self, matches: Tensor, objects: Objects) -> Tensor:
        """Which object's box each prediction learns, ``[sets, B, Q]``, from whose class it learns."""
        return matches


class DecoderLayer(nn.Module):
    """Base of the decoder layers: attention among queries, attention to the maps, a feed-forward network.

    Subclasses say how what was read joins the query.

    Args:
        channels: Channels of queries and maps.
        heads: Attention heads; divides ``channels``.
        feedforward: Channels inside the feed-forward network.
        cross_attn: The attention to the maps.
    """

    def __init__(self, channels: int, heads: int, feedforward: int, cross_attn: DeformableAttention) -> None:
        super().__init__()
        self.cross_attn = cross_attn
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm3 = nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self, query: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, grids: list[Grid], mask: Tensor | None
    ) -> Tensor:
        """Queries ``[B, Q, channels]`` in and out.

        Args:
            query: ``[B, Q, channels]``.
            position: ``[B, Q, channels]``, the query's box, embedded.
            boxes: ``[B, Q, 4]`` float32, cxcywh in 0..1.
            memory: ``[B, S, channels]``.
            grids: One per level.
            mask: ``[Q, Q]`` bool, which query must not look at which.
        """
        placed = query + position
        query = self.norm1(query + self.self_attn(placed, placed, query, attn_mask=mask, need_weights=False)[0])
        query = self.join(query, self.cross_attn(query + position, boxes, memory, grids))
        changed: Tensor = self.norm3(query + self.linear2(functional.relu(self.linear1(query))))
        return changed

    def join(self, query: Tensor, read: Tensor) -> Tensor:
        """The query with what it read, both ``[B, Q, channels]``."""
        raise NotImplementedError


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        inputs: Channels that come in.
        hidden: Channels between the layers.
        outputs: Channels that go out.
        depth: How many layers.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last = depth - 1

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` in, ``[..., outputs]`` out."""
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == self.last else functional.relu(layer(x))
        return x


def silent(mlp: MLP) -> MLP:
    """The network with a last layer of zeros: what it corrects starts unchanged."""
    nn.init.zeros_(mlp.layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(mlp.layers[-1].bias)  # type: ignore[arg-type]
    return mlp


def score_head(channels: int, num_classes: int) -> nn.Linear:
    """A layer for class logits that says 1 % at first: nearly everything is background (RetinaNet, section 4.1)."""
    head = nn.Linear(channels, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - 0.01) / 0.01))
    return head


def no_distributions(boxes: Tensor) -> Tensor:
    """What a prediction has in place of distributions where boxes ``[B, Q, 4]`` are regressed directly."""
    return boxes.new_zeros([boxes.shape[0], boxes.shape[1], 4, 0])


def make_anchors(grids: list[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
    """A box around every cell, and which of them can be used.

    A twentieth of the image on the finest level, twice that on each further one (RT-DETR). Cells whose centre lies
    within a hundredth of the image's border, or outside where padding made the map larger, are not used.

    Args:
        grids: One per level.
        device: Where to.

    Returns:
        Logits of cxcywh boxes in 0..1, ``[S, 4]``, infinite where not used, and ``[S]`` bool.
    """
    boxes: list[Tensor] = []
    for i, grid in enumerate(grids):
        in_cells = grid_positions(grid.height, grid.width, 0.5, device)
        centres = torch.stack((in_cells[:, 0] / grid.image_width, in_cells[:, 1] / grid.image_height), dim=-1)
        boxes.append(torch.cat((centres, torch.full_like(centres, min(0.05 * 2.0**i, 0.9))), dim=-1))
    anchors = torch.cat(boxes)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(dim=-1)
    return torch.where(usable[:, None], (anchors / (1 - anchors)).log(), torch.inf), usable


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities, which are kept ``eps`` away from 0 and 1."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
