"""What is declared about the deployment, and what contradicts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class PolicyError(ValueError):
    """A policy that contradicts the declared facts; the message names each step, the fact and the cure."""


@dataclass(frozen=True)
class DeploymentFacts:
    """What is known about the images of the deployment; null says nothing about it.

    Attributes:
        upright: Objects always stand as they do in the data (the camera is mounted); no image is upside down.
        mirror: Whether mirrored objects occur. false where writing or a handed shape tells classes apart.
        max_rotation: Largest rotation that occurs, in degrees.
        fixed_viewpoint: The camera looks from one direction, so that nothing is sheared or in perspective.
        min_object_px: Side of the smallest object that has to be found, in pixels of the network's input.
        color_matters: Classes differ by colour, so that no hue may be turned into another.
    """

    upright: bool | None = None
    mirror: bool | None = None
    max_rotation: float | None = None
    fixed_viewpoint: bool | None = None
    min_object_px: float | None = None
    color_matters: bool | None = None


class Finding(NamedTuple):
    """One contradiction between a step of the policy and a fact."""

    step: str
    fact: str  # as declared, such as "mirror: false"
    message: str  # what was seen, and the cure

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.step} contradicts `{self.fact}`: {self.message}"
