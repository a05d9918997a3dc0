"""``torch.export``: a graph of torch's operators for any batch and any size of image, the successor of TorchScript."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detframe.export.artefact import Artefact
from detframe.export.runtime import METADATA, Metadata

MOST_IMAGES, MOST_PIXELS = 64, 16384
"""Images of a batch, and pixels of a side, up to which a program is written."""


class _Plain(nn.Module):
    """An artefact that answers with a plain tuple: a program of ours could be loaded with detframe alone."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__()
        self.artefact = artefact

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.artefact(images))


def exported(artefact: Artefact) -> ExportedProgram:
    """The program of an artefact, of uint8 images ``[B, 3, H, W]`` of any B, H and W from 1 on."""
    # No size may be 1, or be like another or the network's: the program would be tied to that.
    sample = torch.zeros(3, 3, artefact.height + 7, 2 * artefact.width + 13, dtype=torch.uint8)
    sizes = {0: Dim("batch", max=MOST_IMAGES), 2: Dim("height", max=MOST_PIXELS), 3: Dim("width", max=MOST_PIXELS)}
    with torch.no_grad():
        return torch.export.export(_Plain(artefact), (sample,), dynamic_shapes=(sizes,), strict=False)


def write_program(artefact: Artefact, metadata: Metadata, path: Path) -> None:
    """Write an artefact as a ``.pt2`` file for ``torch.export.load``."""
    torch.export.save(exported(artefact), str(path), extra_files={METADATA: metadata.to_json()})
