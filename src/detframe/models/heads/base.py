"""What a detector needs of a head."""

from __future__ import annotations

from torch import Tensor, nn

from detframe.structures import Detections, Targets


class Head(nn.Module):
    """Turns feature maps into detections, and into losses.

    A head is built from the levels that it is given and the number of classes, ``Callable[[list[Level], int], Head]``.
    ``forward`` is inference only, so that whatever ``loss`` needs stays out of exported artefacts.
    """

    def forward(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """Detections in input pixels.

        Args:
            features: Feature maps, finest first.
            image_size: (height, width) of the input in pixels.
        """
        raise NotImplementedError

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Named parts of the loss, scalars; what is minimised is their sum."""
        raise NotImplementedError
