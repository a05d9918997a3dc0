"""Images without annotations, as `predict` takes them."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detframe.data.annotations import IMAGE_SUFFIXES, AnnotationIndex, Category, DataError, build_index
from detframe.data.coco import read_coco_images


def read_images(source: str) -> AnnotationIndex:
    """Images of a folder, a glob or a COCO file.

    Args:
        source: A folder, searched with all below it; a glob; an image; or a COCO file.

    Raises:
        DataError: No image is there.
    """
    path = Path(source)
    if path.suffix == ".json":
        return read_coco_images(path)
    found: Iterable[Path] = [path]  # a file's name may hold brackets, which mean something in a glob
    if path.is_dir():
        found = path.rglob("*")
    elif not path.is_file():
        found = map(Path, glob.glob(source, recursive=True))  # noqa: PTH207 - patterns may be absolute
    files = sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{source}: no image there. Name a folder of images, a glob in quotes, or a COCO file.")
    root = path if path.is_dir() else Path()
    names = [str(file.relative_to(root) if path.is_dir() else file) for file in files]
    return without_labels(path, root, names, np.zeros((len(files), 2), dtype=np.int64), ())


def without_labels(
    source: Path,
    image_root: Path,
    file_names: Sequence[str],
    image_sizes: NDArray[np.int64],
    categories: Sequence[Category],
) -> AnnotationIndex:
    """An index of ``M`` images, numbered from 1, that have no annotations; arguments as for :func:`build_index`."""
    nothing = np.zeros(0)
    return build_index(
        source=source,
        image_root=image_root,
        categories=categories,
        image_ids=np.arange(1, len(file_names) + 1),
        file_names=file_names,
        image_sizes=image_sizes,
        image_of_box=nothing.astype(np.int64),
        boxes=nothing.reshape(0, 4),
        labels=nothing.astype(np.int64),
        ignore=nothing.astype(np.bool_),
        areas=nothing,
        annotation_ids=nothing.astype(np.int64),
    )
