import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.metrics.average_precision import (
    TRUE_POSITIVE,
    accumulate,
    mean_of_defined,
    pack_outcomes,
    sort_for_accumulation,
    true_positives_needed,
    unpack_outcomes,
)
from detframe.metrics.matched_images import MatchedImages, from_bytes, no_images, to_bytes


def test_average_precision_by_hand() -> None:
    # Hit, miss, hit, with a detection that does not count between, of 4 objects: precision 1 up to recall 1/4, then
    # 2/3 up to 1/2, then 0.
    outcomes = torch.tensor([[1], [2], [0], [1]])
    curves = accumulate(
        pack_outcomes(outcomes),
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64),
        torch.tensor([[4], [0]]),
        1,
        torch.tensor([0.0, 0.25, 0.26, 0.5, 0.51], dtype=torch.float64),
    )
    torch.testing.assert_close(curves.precision[0, :, 0, 0], torch.tensor([1, 1, 2 / 3, 2 / 3, 0], dtype=torch.float64))
    assert curves.scores[0, :, 0, 0].tolist() == [0.9, 0.9, 0.6, 0.6, 0.0]
    assert curves.recall[0, :, 0].tolist() == [0.5, -1]
    assert curves.precision[0, :, 1, 0].tolist() == [-1] * 5  # a class without objects


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 60), st.integers(1, 5))
def test_accumulation_equals_a_loop_over_classes(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.tensor(rng.integers(0, classes, count))
    scores = torch.tensor(rng.integers(0, 10, count) / 10)
    outcomes = torch.tensor(rng.integers(0, 3, (count, 6)))
    hits = torch.stack([(outcomes[labels == c] == TRUE_POSITIVE).sum(0).view(2, 3).amax(1) for c in range(classes)])
    positives = (hits + torch.tensor(rng.integers(0, 3, (classes, 2)))).long()
    recalls = torch.linspace(0, 1, 11, dtype=torch.float64)
    order = sort_for_accumulation(labels, scores)
    curves = accumulate(pack_outcomes(outcomes[order]), labels[order], scores[order], positives, 3, recalls)
    for c in range(classes):
        for a in range(2):
            if not positives[c, a]:
                assert bool((curves.precision[:, :, c, a] == -1).all())
                continue
            rows = np.argsort(-scores[labels == c].numpy(), kind="stable")
            for t in range(3):
                outcome = outcomes[labels == c][rows, a * 3 + t].numpy()
                true, false = (outcome == 1).cumsum(), (outcome == 0).cumsum()
                precision = true / np.maximum(true + false, 1)
                recall = true / int(positives[c, a])
                expected = [max(precision[recall >= r], default=0.0) for r in recalls.tolist()]
                np.testing.assert_allclose(curves.precision[t, :, c, a], expected, atol=1e-12)
                assert curves.recall[t, c, a] == (recall[-1] if len(recall) else 0)


def test_needed_true_positives_are_exact_for_every_count() -> None:
    recalls = np.linspace(0, 1, 101)
    positives = torch.arange(1, 1200)
    needed = true_positives_needed(positives, torch.tensor(recalls))
    for count, row in zip(positives.tolist(), needed.numpy(), strict=True):
        np.testing.assert_array_equal(row, np.searchsorted(np.arange(count + 1) / count, recalls))


@given(st.integers(0, 9), st.integers(1, 13), st.integers(0, 10**9))
def test_outcomes_survive_packing(rows: int, columns: int, seed: int) -> None:
    outcomes = torch.tensor(np.random.default_rng(seed).integers(0, 4, (rows, columns)), dtype=torch.uint8)
    packed = pack_outcomes(outcomes)
    assert packed.shape == (rows, (columns + 3) // 4)
    for column in range(columns):
        assert torch.equal(unpack_outcomes(packed, column), outcomes[:, column])


def test_records_survive_bytes() -> None:
    for images, found, objects in ((0, 0, 0), (3, 5, 2), (1, 0, 7)):
        lengths = [images] * 3 + [found] * 3 + [objects] * 2 + [found]
        templates = no_images(3, torch.device("cpu"))
        fields = [
            torch.randint(0, 100, (length, *template.shape[1:])).to(template.dtype)
            for length, template in zip(lengths, templates, strict=True)
        ]
        record = MatchedImages._make(fields)
        for one, other in zip(record, from_bytes(to_bytes(record), 3), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_mean_of_defined() -> None:
    assert mean_of_defined(torch.tensor([0.5, -1.0, 1.0])) == 0.75
    assert mean_of_defined(torch.tensor([-1.0])) == -1
