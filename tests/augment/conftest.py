from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kornia
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detframe.structures import Batch, Targets

Draw = Callable[..., Batch]

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")


class NoWaiting(TorchDispatchMode):
    """Fails at what would make the host wait for an accelerator: reading a value back, or sizes that depend on values.

    On the CPU it also sees what touches random numbers before they are moved, and so is stricter than it must be.
    """

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as torch has it
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = func._schema.name
        if name in _WAITS:
            raise AssertionError(f"{name} makes the host wait")
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} by a bool tensor"
        return func(*args, **(kwargs or {}))


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


@pytest.fixture
def kornia_that_waits_for_nothing() -> None:
    """Before version 0.9, the last for Python 3.10 being 0.8, Kornia reads its gates back from the device."""
    if tuple(map(int, kornia.__version__.split(".")[:2])) < (0, 9):
        pytest.skip(f"Kornia {kornia.__version__} reads its gates back")


@pytest.fixture
def no_waiting(kornia_that_waits_for_nothing: None) -> NoWaiting:
    return NoWaiting()  # type: ignore[no-untyped-call]
