"""Puts errors into the labels of a split: what a finder of wrong labels, or the cleaning of them, is tried on.

    python tools/corrupt_labels.py path/to/data noisy.json --split train --share 0.2

A quarter of the share each is left out, gets another class, is moved to an IoU of 0.3 to 0.7 with where it was, and is
added where nothing is. Written is a COCO file with the ids of the original; images stay where they are, so give their
folder as `--data.images`. Beside it, as noisy.truth.json, stands what was done to which label.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detframe.analysis.evaluation import image_sizes
from detframe.data.annotations import AnnotationIndex, DataError, build_index
from detframe.data.coco import write_coco
from detframe.data.sources import read_split
from detframe.metrics.label_noise import LabelError, NoisyLabels, with_errors
from detframe.metrics.rows import TruthRows

KINDS = (LabelError.MISSING, LabelError.WRONG_CLASS, LabelError.BAD_BOX, LabelError.SPURIOUS)


def truths_of(index: AnnotationIndex) -> TruthRows:
    """The labels of a split as rows, in its order; images by their place."""
    owners = index.image_of_box()
    return TruthRows(
        images=torch.from_numpy(owners),
        boxes=torch.from_numpy(index.boxes).float(),
        labels=torch.from_numpy(index.labels),
        ignore=torch.from_numpy(index.ignore.copy()),
    )


def index_of(noisy: NoisyLabels, clean: AnnotationIndex) -> AnnotationIndex:
    """Noisy labels as a split; a label keeps the id of the one that it was made of, an added one gets a new one."""
    truths, origins = noisy.truths, noisy.origins.numpy()
    kept = origins.clip(min=0)
    unmoved = (origins >= 0) & (noisy.errors.numpy() != LabelError.BAD_BOX)
    return with_labels(
        clean,
        image_of_box=truths.images.numpy(),
        boxes=np.where(unmoved[:, None], clean.boxes[kept], truths.boxes.double().numpy()),
        labels=truths.labels.numpy(),
        ignore=truths.ignore.numpy(),
        areas=np.where(unmoved, clean.areas[kept], np.nan),
        annotation_ids=ids_of(noisy, clean),
    )


def with_labels(
    index: AnnotationIndex,
    image_of_box: NDArray[np.int64],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    ignore: NDArray[np.bool_],
    areas: NDArray[np.float64],
    annotation_ids: NDArray[np.int64],
) -> AnnotationIndex:
    """The images of a split with other labels."""
    return build_index(
        source=index.source,
        image_root=index.image_root,
        categories=index.categories,
        image_ids=index.image_ids,
        file_names=index.file_names,
        image_sizes=index.image_sizes,
        image_of_box=image_of_box,
        boxes=boxes,
        labels=labels,
        ignore=ignore,
        areas=areas,
        annotation_ids=annotation_ids,
        metadata=index.metadata,
    )


def ids_of(noisy: NoisyLabels, clean: AnnotationIndex) -> NDArray[np.int64]:
    """The id of each noisy label: its original's, or a new one."""
    origins = noisy.origins.numpy()
    added = np.cumsum(origins < 0) + int(np.max(clean.annotation_ids, initial=0))
    return np.where(origins >= 0, clean.annotation_ids[origins.clip(min=0)], added)


def sound_labels(index: AnnotationIndex) -> AnnotationIndex:
    """The split without degenerate boxes, which no one could be asked about, and with the sizes of its images."""
    sizes = image_sizes(index)
    owners = index.image_of_box()
    inside = index.boxes.clip(0, np.tile(sizes[owners][:, ::-1], 2))
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    return with_labels(
        replace(index, image_sizes=sizes),
        image_of_box=owners[kept],
        boxes=inside[kept],
        labels=index.labels[kept],
        ignore=index.ignore[kept],
        areas=index.areas[kept],
        annotation_ids=index.annotation_ids[kept],
    )


def corrupt(clean: AnnotationIndex, share: float, seed: int) -> NoisyLabels:
    """Errors in a share of the labels of a sound split, a quarter of each of :data:`KINDS`."""
    shares = dict.fromkeys(KINDS, share / len(KINDS))
    rng = np.random.default_rng(seed)
    return with_errors(truths_of(clean), clean.image_sizes, len(clean.categories), shares, rng)


def main() -> int:
    """Corrupt one split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="root of the data set")
    parser.add_argument("out", type=Path, help="COCO file to write")
    parser.add_argument("--split", default="train", help="its name, or its COCO file")
    parser.add_argument("--share", type=float, default=0.2, help="of the labels, 0..1")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        if not 0 < given.share < 1:
            raise DataError(f"--share has {given.share}; give a share of the labels, above 0 and below 1.")
        if given.out.exists():
            raise DataError(f"{given.out}: exists already. Name another file.")
        clean = sound_labels(read_split(given.data, given.split))
        noisy = corrupt(clean, given.share, given.seed)
        write_coco(index_of(noisy, clean), given.out)
    except (DataError, OSError) as error:
        print(f"corrupt_labels: {error}", file=sys.stderr)
        return 2
    changed = [
        {"annotation_id": number, "error": LabelError(error).name}
        for number, error in zip(ids_of(noisy, clean).tolist(), noisy.errors.tolist(), strict=True)
        if error
    ]
    changed += [{"annotation_id": int(clean.annotation_ids[row]), "error": "MISSING"} for row in noisy.missing.tolist()]
    given.out.with_suffix(".truth.json").write_text(json.dumps(changed), encoding="utf-8")
    print(f"{len(changed)} of {len(clean.labels)} labels are wrong now. Give --data.images {clean.image_root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
