"""TorchScript: a file that torch runs without Python, the format of many servers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import torch
from torch import nn

from detframe.export.artefact import Artefact
from detframe.export.runtime import METADATA, Metadata


def write_torchscript(artefact: Artefact, metadata: Metadata, path: Path) -> None:
    """Write an artefact for images of any size and any type, frozen.

    A backbone that cannot be scripted, as timm's plain transformers, is traced at the size of the network's input; what
    stands around it is scripted all the same.
    """
    with _deprecation_is_known():
        try:
            scripted = torch.jit.script(artefact)
        except Exception:  # torch has no one error for code that it cannot script
            scripted = torch.jit.script(_with_traced_backbone(artefact))
        torch.jit.save(torch.jit.freeze(scripted), str(path), _extra_files={METADATA: metadata.to_json()})


def _with_traced_backbone(artefact: Artefact) -> Artefact:
    """The same artefact, its backbone as a trace; parameters are shared."""
    traced, detector = copy(artefact), copy(artefact.detector)
    traced._modules, detector._modules = dict(artefact._modules), dict(artefact.detector._modules)
    backbone = detector.backbone
    assert isinstance(backbone, nn.Module)
    sample = torch.zeros(2, 3, artefact.height, artefact.width)
    detector._modules["backbone"] = torch.jit.trace(backbone, sample, strict=False)
    traced._modules["detector"] = detector
    return traced


@contextmanager
def _deprecation_is_known() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.export is written as well
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield
