import pytest
import torch
from torchvision.ops import box_iou

from detframe.boxes import pairwise_iou


def test_iou_is_torchvisions_with_leading_dimensions() -> None:
    corner = 50 * torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat((corner, corner + 1 + corner.flip(1)), dim=-1)
    expected = torch.stack([box_iou(image[:8], image) for image in boxes])
    torch.testing.assert_close(pairwise_iou(boxes[:, :8], boxes), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_empty_boxes_have_an_iou_of_0(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0], [4, 4, 4, 9], [0, 0, 8, 8]], dtype=dtype)
    assert torch.equal(pairwise_iou(boxes, boxes), torch.diag(torch.tensor([0.0, 0, 1], dtype=dtype)))
