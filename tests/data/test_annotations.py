from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detframe.data.annotations import (
    AnnotationIndex,
    Category,
    DataError,
    Fault,
    Reading,
    build_index,
    number_missing,
    repeated,
    require_sound,
)


def index() -> AnnotationIndex:
    """Three images with 1, 0 and 3 boxes, given in disorder."""
    return build_index(
        source=Path("train.json"),
        image_root=Path("images"),
        categories=[Category(5, "open")],
        image_ids=np.array([7, 3, 9]),
        file_names=["a.png", "b.png", "c.png"],
        image_sizes=np.full((3, 2), 64),
        image_of_box=np.array([2, 0, 2, 2]),
        boxes=np.arange(16, dtype=np.float64).reshape(4, 4),
        labels=np.zeros(4, dtype=np.int64),
        ignore=np.array([True, False, False, False]),
        areas=np.array([1, np.nan, 3, 4]),
        annotation_ids=np.array([20, 21, 22, 23]),
        metadata=[{"board": "x"}, {}, {}],
        annotation_files=[Path("a.xml"), Path("b.xml"), Path("c.xml")],
    )


def test_boxes_come_into_image_order() -> None:
    built = index()
    assert built.offsets.tolist() == [0, 1, 1, 4]
    assert built.annotation_ids.tolist() == [21, 20, 22, 23]
    assert built.boxes[:, 0].tolist() == [4, 0, 8, 12]
    assert built.areas.tolist() == [4, 1, 3, 4]  # the first from its box of 2 x 2
    assert built.ignore.tolist() == [False, True, False, False]
    assert built.annotation_ids[built.rows(2)].tolist() == [20, 22, 23]
    assert built.path(1) == Path("images/b.png")


def test_a_subset_keeps_rows_together() -> None:
    subset = index().subset([2, 0])
    assert subset.image_ids.tolist() == [9, 7]
    assert subset.annotation_ids.tolist() == [20, 22, 23, 21]
    assert subset.offsets.tolist() == [0, 3, 4]
    assert subset.metadata == ({}, {"board": "x"})
    assert subset.annotation_file(0) == Path("c.xml")
    assert len(index().subset([])) == 0


def test_no_metadata_is_empty() -> None:
    built = index().subset([1, 2])
    rebuilt = build_index(
        **{name: getattr(built, name) for name in ("source", "image_root", "categories", "image_ids", "file_names")},
        **{name: getattr(built, name) for name in ("image_sizes", "boxes", "labels", "ignore", "areas")},
        image_of_box=np.ones(3, dtype=np.int64),
        annotation_ids=built.annotation_ids,
        metadata=[{}, {}],
    )
    assert rebuilt.metadata == ()
    assert rebuilt.annotation_file(0) == Path("train.json")


def test_missing_ids_follow_the_highest() -> None:
    assert number_missing([None, 4, None]).tolist() == [5, 4, 6]
    assert number_missing([None, None]).tolist() == [1, 2]
    assert number_missing([]).tolist() == []


def test_repeated_are_the_later_ones() -> None:
    assert repeated(np.array([5, 1, 5, 2, 1, 5])).tolist() == [2, 4, 5]
    assert repeated(np.zeros(0, dtype=np.int64)).tolist() == []


def test_errors_are_named_and_counted() -> None:
    errors = [Fault("unknown-class", "error", "train.json", f"annotation {i}", "has no class") for i in range(7)]
    warning = Fault("missing-id", "warning", "train.json", "", "numbered")
    built = index()
    assert require_sound(Reading(built, [warning], Counter())) is built
    with pytest.raises(DataError, match="7 errors") as caught:
        require_sound(Reading(built, [warning, *errors], Counter()))
    assert "train.json, annotation 4: has no class" in str(caught.value)
    assert "annotation 5" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")
