"""Anchors, RoIAlign, sampling and losses against torchvision's."""

import torch
from torchvision.models.detection import _utils as reference
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, _default_anchorgen
from torchvision.ops import MultiScaleRoIAlign

from detframe.boxes import decode_boxes, encode_boxes
from detframe.models.anchors import base_anchors, grid_anchors, grid_cells
from detframe.models.heads.fcos import FCOSHead
from detframe.models.heads.retina import RetinaHead
from detframe.models.proposals import roi_align_pyramid, sample_balanced, select_proposals
from detframe.structures import Level, Targets

STRIDES = [8, 16, 32, 64, 128]
FEATURES = [torch.rand(2, 64, 256 // s, 256 // s, generator=torch.Generator().manual_seed(s)) for s in STRIDES]


def boxes_of(batch: int, count: int, smallest: float = 8.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = smallest + torch.rand(batch, count, 2, generator=generator) * 120
    corner = torch.rand(batch, count, 2, generator=generator) * (256 - size)
    return torch.cat((corner, corner + size), dim=-1)


def test_anchors_are_torchvisions() -> None:
    expected = _default_anchorgen()(ImageList(torch.zeros(2, 3, 256, 256), [(256, 256)] * 2), FEATURES)[0]
    bases = RetinaHead([Level(64, s) for s in STRIDES], 3).bases
    assert torch.equal(grid_anchors(grid_cells(FEATURES, STRIDES, 0.0), bases), expected)
    generator = AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)
    expected = generator(ImageList(torch.zeros(1, 3, 256, 256), [(256, 256)]), FEATURES[:2])[0]
    bases = base_anchors([8, 16], [4.0], [0.5, 1.0, 2.0])
    assert torch.equal(grid_anchors(grid_cells(FEATURES[:2], [8, 16], 0.0), bases), expected)


def test_box_coding_is_torchvisions() -> None:
    boxes, references = boxes_of(1, 50)[0], boxes_of(1, 50, 20.0)[0]
    weights = (10.0, 10.0, 5.0, 5.0)
    coder = reference.BoxCoder(weights)
    encoded = encode_boxes(boxes, references, weights)
    torch.testing.assert_close(encoded, coder.encode_single(boxes, references))
    torch.testing.assert_close(decode_boxes(encoded, references, weights), boxes, atol=1e-3, rtol=1e-5)
    offsets = 20 * torch.randn(50, 4)  # some beyond the limit of growth
    torch.testing.assert_close(
        decode_boxes(offsets, references, weights), coder.decode_single(offsets, references), rtol=1e-4, atol=1e-2
    )


def test_roi_align_over_levels_is_torchvisions() -> None:
    boxes = boxes_of(2, 40, smallest=33.0)  # no narrower than a cell of the coarsest level
    boxes[:, 0] = torch.tensor([200.0, 200, 256, 256])  # at the border
    pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    named = {str(i): feature for i, feature in enumerate(FEATURES[:3])}
    expected = pool(named, list(boxes), [(256, 256)] * 2)
    torch.testing.assert_close(roi_align_pyramid(FEATURES[:3], STRIDES[:3], boxes, 7), expected, atol=1e-5, rtol=1e-4)


def test_sampling_keeps_its_numbers() -> None:
    positive = torch.zeros(3, 50, dtype=torch.bool)
    positive[0, :30] = True
    positive[1, :2] = True
    negative = ~positive
    negative[2, 5:] = False
    chosen = sample_balanced(positive, negative, 16, 0.25)
    assert (chosen & positive).sum(dim=1).tolist() == [4, 2, 0]
    assert (chosen & negative).sum(dim=1).tolist() == [12, 14, 5]
    again = sample_balanced(positive, negative, 16, 0.25)
    assert not torch.equal(chosen, again)  # at random


def test_proposals_come_best_first_and_suppressed_by_level() -> None:
    box = [10.0, 10, 50, 50]
    boxes = torch.tensor([[box, box, [60.0, 60, 90, 90], box, [5.0, 5, 5, 9]]])
    objectness = torch.tensor([[0.5, 0.9, 0.7, 0.6, 0.99]])
    found, valid = select_proposals(
        boxes, objectness, [3, 2], smallest=1e-3, per_level=10, iou_threshold=0.7, proposals=4
    )
    assert valid.tolist() == [[True, True, True, False]]  # the twin of a level goes, as does the box without width
    assert found[0].tolist() == [box, [60.0, 60, 90, 90], box, [0.0] * 4]


def some_targets() -> tuple[Targets, list[dict[str, torch.Tensor]]]:
    boxes, labels = boxes_of(2, 6), torch.randint(0, 3, (2, 6), generator=torch.Generator().manual_seed(1))
    no = torch.zeros(2, 6, dtype=torch.bool)
    as_lists = [{"boxes": b, "labels": label} for b, label in zip(boxes, labels, strict=True)]
    return Targets(boxes, labels, no, ~no), as_lists


def test_losses_are_torchvisions() -> None:
    targets, as_lists = some_targets()
    levels, size = [Level(64, s) for s in STRIDES], (256, 256)

    retina = RetinaHead(levels, 3)
    outputs, anchors = retina.towers(FEATURES), grid_anchors(grid_cells(FEATURES, STRIDES, 0.0), retina.bases)
    theirs = type("Theirs", (), {"head": retina.towers, "proposal_matcher": reference.Matcher(0.5, 0.4, True)})()
    expected = RetinaNet.compute_loss(theirs, as_lists, outputs, [anchors] * 2)
    found = retina.loss(FEATURES, targets, size)
    torch.testing.assert_close(found["class"], expected["classification"])
    torch.testing.assert_close(found["box"], expected["bbox_regression"])

    fcos = FCOSHead(levels, 3)
    torch.nn.init.normal_(fcos.towers.regression_head.bbox_reg.bias, mean=3.0)  # type: ignore[arg-type]
    cells = grid_cells(FEATURES, STRIDES, 0.0)
    half = cells.strides[:, None] / 2
    anchors = torch.cat((cells.centres - half, cells.centres + half), dim=1)
    theirs = type("Theirs", (), {"head": fcos.towers, "center_sampling_radius": 1.5})()
    expected = FCOS.compute_loss(theirs, as_lists, fcos.towers(FEATURES), [anchors.clone()] * 2, cells.counts)
    found = fcos.loss(FEATURES, targets, size)
    assert fcos.assigner(torch.zeros(2, len(anchors), 3), anchors, cells, targets).positive.sum() > 10
    torch.testing.assert_close(found["class"], expected["classification"])
    torch.testing.assert_close(found["box"], expected["bbox_regression"])
    torch.testing.assert_close(found["centreness"], expected["bbox_ctrness"])
