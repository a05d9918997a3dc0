"""What an operator has to be to stand in a policy beside Kornia's."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kornia.augmentation import MixAugmentationBaseV2

from detframe.augment.facts import DeploymentFacts
from detframe.structures import Batch, TrainingObjects


class BatchAugmentation(MixAugmentationBaseV2, ABC):
    """An operator that sees the boxes, or several images at once: it takes a whole batch and gives one.

    It derives from Kornia's base for operators that mix images, so that ``p``, the gate of each image
    (``self.forward_parameters(images.shape)["batch_prob"]``, on the CPU) and the global random generators are Kornia's.

    Random numbers are drawn on the CPU, where the seed gives the same ones for every device, and moved to the batch's
    device; nothing is read back from there, so that an accelerator is never waited for.

    Args:
        p: Share of the images that it changes, 0..1.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p, p_batch=1.0)

    def prepare(self, objects: TrainingObjects) -> None:
        """Look at the training data, once, before the first batch."""

    @abstractmethod
    def augment(self, batch: Batch) -> Batch:
        """The batch with other pixels and targets; ``images`` are float 0..1 before and after."""

    def __call__(self, batch: Batch) -> Batch:
        """See :meth:`augment`; Kornia's own call, before version 0.9, keeps a copy of what comes back."""
        return self.augment(batch)

    def contradictions(self, facts: DeploymentFacts, objects: TrainingObjects | None) -> list[tuple[str, str]]:
        """Facts about the deployment that this operator contradicts, each with what is wrong and the cure."""
        return []
