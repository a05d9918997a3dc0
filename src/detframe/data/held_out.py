"""Training images that are held out for validation where a configuration names no validation split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.sources import configuration_block, read_split


class OtherHeldOutError(DataError):
    """What a configuration holds out now is not what its run held out, so the run may have trained on it."""


def hold_out(
    index: AnnotationIndex, fraction: float, group_by: str | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose images to hold out, whole groups at a time.

    Args:
        index: Images.
        fraction: Share to hold out, 0..1; at least one image.
        group_by: Metadata column whose values are the groups; None lets every image be its own.
        seed: Of the shuffling.

    Returns:
        Positions kept and positions held out, each ascending.

    Raises:
        DataError: An image has no such column, or there are fewer than two groups.
    """
    groups: Sequence[Any] = range(len(index)) if group_by is None else index.column(group_by)
    names, membership = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{index.source}: one group cannot be split. Give `data.val`, or another `group_by`.")
    order = np.random.default_rng(seed).permutation(len(names))
    held = np.isin(membership, order[_nearest_sum(np.bincount(membership)[order], fraction * len(index))])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _nearest_sum(sizes: NDArray[np.int64], wanted: float) -> list[int]:
    """Places of groups whose sizes sum to about ``wanted``: at least one, never all.

    Groups are taken in their order, those too large for what is left are passed over, and one more is taken where that
    comes nearer. So a large group that happens to stand first does not take a share that was never asked for.

    Args:
        sizes: ``[G]``, 1 or more each; G is 2 or more.
        wanted: Sum to come near.
    """
    taken: list[int] = []
    total = 0
    for place, size in enumerate(sizes.tolist()):
        if total + size <= wanted and len(taken) < len(sizes) - 1:
            taken.append(place)
            total += size
    rest = np.setdiff1d(np.arange(len(sizes)), taken)
    nearest = int(rest[np.abs(total + sizes[rest] - wanted).argmin()])
    if not taken or (len(rest) > 1 and abs(total + sizes[nearest] - wanted) <= wanted - total):
        taken.append(nearest)
    return taken


def held_out_of_run(config: Path) -> tuple[AnnotationIndex, AnnotationIndex] | None:
    """What a run trained on and what it held out, by its resolved configuration and the manifest beside it.

    Args:
        config: ``config.yaml`` of a run, defaults included.

    Returns:
        None where it is no configuration, or names a validation split.

    Raises:
        DataError: The training split cannot be read.
        OtherHeldOutError: Its held-out images are others than the run's ``data_manifest.json`` has.
    """
    block = configuration_block(config)
    if block is None or not block.get("train") or "val_fraction" not in block or block.get("val"):
        return None
    images = Path(block["images"]) if block.get("images") else None
    whole = read_split(Path(block["root"]), str(block["train"]), images)
    kept, held = map(whole.subset, hold_out(whole, block["val_fraction"], block["group_by"], block["seed"]))
    manifest = config.with_name("data_manifest.json")
    if manifest.is_file() and not _same_images(held, json.loads(manifest.read_bytes())["splits"].get("val", {})):
        raise OtherHeldOutError(
            f"{config}: the images of {whole.source} that would be held out now are not those that the run held out, "
            "so it may have trained on them. Either they have changed since, or the run is of a version that dealt "
            "them out otherwise. Name images that it has not seen with --data, or train anew."
        )
    return kept, held


def _same_images(index: AnnotationIndex, recorded: dict[str, Any]) -> bool:
    """Whether a split has the images that a manifest records; labels may have been mended since."""
    same = not recorded or recorded["annotations_hash"] == index.annotations_hash()
    return same or recorded["images_hash"] == index.images_hash()
