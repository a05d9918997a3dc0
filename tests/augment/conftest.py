from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")


class NoWaiting(TorchDispatchMode):
    """Fails at what would make the host wait for an accelerator: reading a value back, or sizes that depend on values.

    On the CPU it also sees what touches random numbers before they are moved, and so is stricter than it must be.
    """

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        name = func._schema.name
        if name in _WAITS:
            raise AssertionError(f"{name} makes the host wait")
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} by a bool tensor"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_waiting() -> NoWaiting:
    return NoWaiting()  # type: ignore[no-untyped-call]
