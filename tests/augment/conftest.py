from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detframe.structures import Batch, Targets

Draw = Callable[..., Batch]


@pytest.fixture(scope="session")
def drawn() -> Draw:
    """Draws one black image with white rectangles where the boxes are."""

    def draw(boxes: list[list[float]], side: int = 96) -> Batch:
        images = torch.zeros(1, 3, side, side)
        for x1, y1, x2, y2 in boxes:
            images[0, :, int(y1) : int(y2), int(x1) : int(x2)] = 1
        count = len(boxes)
        return Batch(
            images=images,
            targets=Targets(
                boxes=torch.tensor([boxes], dtype=torch.float32),
                labels=torch.arange(count)[None],
                ignore=torch.zeros(1, count, dtype=torch.bool),
                valid=torch.ones(1, count, dtype=torch.bool),
            ),
            original_boxes=torch.tensor([boxes], dtype=torch.float32),
            areas=torch.zeros(1, count),
            annotation_ids=torch.arange(count)[None],
            image_ids=torch.tensor([1]),
            original_sizes=torch.tensor([[side, side]]),
            transforms=torch.tensor([[1.0, 1, 0, 0]]),
        )

    return draw


@pytest.fixture(scope="session")
def enclosing() -> Callable[..., Tensor]:
    """Finds the box around the pixels of an image that are brighter than a threshold, above the grey of no image."""

    def enclose(image: Tensor, threshold: float = 0.5) -> Tensor:
        rows, columns = torch.nonzero(image[0] > threshold, as_tuple=True)
        return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()

    return enclose
