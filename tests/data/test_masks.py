from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detframe.data.masks import decompress, rasterise


def test_a_polygon_covers_the_pixels_in_it() -> None:
    mask = rasterise([[2, 1, 6, 1, 6, 4, 2, 4]], (6, 8))
    assert mask is not None
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_polygons_move_and_grow_with_the_image() -> None:
    mask = rasterise([[0, 0, 10, 0, 0, 10], [10, 10, 12, 10, 12, 12, 10, 12]], (40, 30), (2.0, 3.0, 4.0, 1.0))
    assert mask is not None
    assert mask[1:31, 4:24].sum() == pytest.approx(300, rel=0.05)
    assert mask[31:37, 24:28].all()
    assert mask.sum() == mask[1:31, 4:24].sum() + 24


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_runs_are_those_of_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
    runs = np.diff([0, *changes, len(flat)]).tolist()
    assert decompress(encoded["counts"].decode()) == runs
    for counts in (encoded["counts"].decode(), runs):
        found = rasterise({"size": list(mask.shape), "counts": counts}, mask.shape)
        assert found is not None
        np.testing.assert_array_equal(found, mask)


def test_runs_move_and_grow_with_the_image() -> None:
    runs = {"size": [3, 2], "counts": [1, 2, 3]}  # the lower two pixels of the left column
    found = rasterise(runs, (8, 7), (2.0, 2.0, 1.0, 1.0))
    assert found is not None
    expected = np.zeros((8, 7), dtype=bool)
    expected[3:7, 1:3] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("counts", [[1, 2], [7], [9, -3], "1", "~~~~", ""])
def test_runs_that_do_not_fill_their_image_are_none(counts: object) -> None:
    assert rasterise({"size": [3, 2], "counts": counts}, (3, 2)) is None
