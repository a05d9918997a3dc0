"""What a detector needs of a head.

Postponed annotations would break TorchScript here, which reads the types of the attributes.
"""

from torch import Tensor, nn

from detframe.models.postprocess import suppress, vote
from detframe.structures import Detections, Level, Targets


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
        return self.select(self.raw_detections(features, image_size))

    def raw_detections(self, features: list[Tensor], image_size: tuple[int, int]) -> Detections:
        """The best of all predictions as they are, several of one object among them; ``forward`` says of what."""
        raise NotImplementedError

    def select(self, raw: Detections) -> Detections:
        """Detections among the raw ones; all of them, for a head that finds no object twice."""
        return raw

    def loss(self, features: list[Tensor], targets: Targets, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Named parts of the loss, scalars; what is minimised is their sum."""
        raise NotImplementedError

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """Which rows of the head's parameters belong to which class.

        With it weights move between detectors of other classes, by class name; a head that does not say so has its
        class-dependent parameters made anew.

        Args:
            num_classes: C of the state dictionary that is asked about, this head's own or another's.

        Returns:
            By parameter name, the rows (indices along the first dimension) of each label, ``[C, rows per class]``.
        """
        return {}


class NMSHead(Head):
    """A head that finds an object several times.

    Of detections of a class that overlap more than ``nms_iou`` the best stays, where they lie on the mean; at most
    ``detections`` of an image. Two that stay may have moved together, and overlap a little more than ``nms_iou`` then.
    """

    nms_iou: float
    detections: int

    def select(self, raw: Detections) -> Detections:
        """Non-maximum suppression by class, and box voting."""
        return vote(suppress(raw, self.nms_iou, self.detections), raw)


def equal_channels(head: Head, levels: list[Level], grouped: bool) -> int:
    """Channels of all levels, for a head whose layers they share.

    Args:
        head: Who asks.
        levels: What it was given.
        grouped: Whether its group norms, of 32 groups, need a multiple of 32 channels, and two of them in each group,
            since a coarsest map of one cell would else have nothing to normalise over.

    Raises:
        ValueError: The channels differ or do not make up such groups.
    """
    channels = sorted({level.channels for level in levels})
    if len(channels) != 1 or (grouped and (channels[0] % 32 or channels[0] < 64)):
        given = ", ".join(f"{level.channels} at stride {level.stride}" for level in levels)
        needed = "64 channels or a higher multiple of 32" if len(channels) == 1 else "the same channels on all levels"
        raise ValueError(
            f"{type(head).__name__} needs {needed}, since its layers are shared; it was given {given}. Set the neck's "
            "`channels`, or put a neck such as FPN before it."
        )
    return channels[0]
