"""How well wrong labels are found: `label-errors` beside others, on errors put into labels that are taken as right.

    python tools/bench_label_errors.py RUN [RUN ...] [--data DATA]

RUN are folders with predictions on data that the detector has not trained on, as for `detframe label-errors`; several
are put together, such as those of the validation and the test split. Into their labels go 5 % each of drops (a label
missing), flips (another class), shifts (a box moved to an IoU of 0.3 to 0.7) and spawns (a label of nothing). Every
method ranks the same labels by the same detections.

- `ours`: what `detframe label-errors` does
- `one line`: 1 - max(score x IoU, same class) + max(score x IoU, other class) / 2; missing labels by the score of
  detections that no label overlaps by 0.5
- `cleanlab`: ObjectLab's scores of labels, the lower of a swapped class and a bad place, where cleanlab is installed
  (its score of overlooked objects is of predictions above 0.95 alone, and no ranking of detections)

AP is that of the ranking of labels over flips, shifts and spawns; AP4 puts labels and unlabelled detections in one list
and counts the dropped ones too. AUROC is of a kind of error among the right labels. `P@n` is the share of errors among
the n first labels, n of them being wrong; `drops@n` the share of the n dropped labels among the n first detections
without a label, `drops@2n` among the first 2n.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detframe.analysis.label_errors import read_source
from detframe.metrics.label_evidence import gather_evidence
from detframe.metrics.label_noise import LabelError, NoisyLabels, with_errors
from detframe.metrics.label_quality import candidate_rows, judge_labels, learn_label_errors
from detframe.metrics.rows import DetectionRows, TruthRows, match_rows_of_any_class

SHARE = 0.05
KINDS = {"flip": LabelError.WRONG_CLASS, "shift": LabelError.BAD_BOX, "spawn": LabelError.SPURIOUS}
COLUMNS = ("AP", *(f"AUROC {name}" for name in KINDS), "P@n", "AP4", "drops@n", "drops@2n")


class Data(NamedTuple):
    """Detections and labels of some images."""

    detections: DetectionRows
    truths: TruthRows
    sizes: NDArray[np.int64]  # [I, 2]
    class_names: list[str]


class Ranking(NamedTuple):
    """How suspicious a method finds labels and detections; nothing has to be a probability, but both are one scale."""

    labels: Tensor  # [G]
    missing: Tensor  # [D], -inf for what is no candidate


def together(runs: list[Path], data: Path | None) -> Data:
    """The images of some runs, one after the other."""
    parts = [read_source(run, data) for run in runs]
    first = np.cumsum([0, *(len(part.evaluation.sizes) for part in parts[:-1])])
    detections, truths = [], []
    for part, start in zip(parts, first.tolist(), strict=True):
        rows = part.rows
        detections.append(rows.detections._replace(images=rows.detections.images + start))
        truths.append(rows.truths._replace(images=rows.truths.images + start))
    return Data(
        DetectionRows(*(torch.cat(columns) for columns in zip(*detections, strict=True))),
        TruthRows(*(torch.cat(columns) for columns in zip(*truths, strict=True))),
        np.concatenate([part.evaluation.sizes for part in parts]),
        parts[0].evaluation.class_names,
    )


def ours(data: Data, truths: TruthRows, seed: int) -> Ranking:
    """By the probability of any error."""
    facts = data.detections, truths, data.sizes, len(data.class_names)
    quality = judge_labels(learn_label_errors(*facts, seed), *facts)
    evidence = quality.evidence
    missing = torch.where(candidate_rows(data.detections, evidence), quality.missing, -torch.inf)
    return Ranking(1 - quality.labels[:, LabelError.NONE], missing)


def one_line(data: Data, truths: TruthRows, seed: int) -> Ranking:
    """By the formula that one would write down first."""
    evidence = gather_evidence(data.detections, truths, torch.from_numpy(data.sizes).float(), len(data.class_names))
    same, other = evidence.labels[:, 0], evidence.labels[:, 1]
    return Ranking(1 - same + other / 2, torch.where(evidence.unlabelled, data.detections.scores, -torch.inf))


def cleanlab(data: Data, truths: TruthRows, seed: int) -> Ranking:
    """By ObjectLab's scores of single boxes."""
    rank = importlib.import_module("cleanlab.object_detection.rank")
    labels, predictions, rows = [], [], []
    for image in range(len(data.sizes)):
        own = (truths.images == image).nonzero().flatten()
        rows.append(own)
        labels.append({"bboxes": truths.boxes[own].numpy(), "labels": truths.labels[own].numpy()})
        seen = (data.detections.images == image).nonzero().flatten()
        per_class = []
        for label in range(len(data.class_names)):
            of_class = seen[data.detections.labels[seen] == label]
            scored = torch.cat((data.detections.boxes[of_class], data.detections.scores[of_class][:, None]), dim=1)
            per_class.append(scored.numpy())
        predictions.append(np.array(per_class, dtype=object))
    result = torch.zeros(len(truths.labels))
    badloc = rank.compute_badloc_box_scores(labels=labels, predictions=predictions)
    swap = rank.compute_swap_box_scores(labels=labels, predictions=predictions)
    for own, location, exchanged in zip(rows, badloc, swap, strict=True):
        result[own] = 1 - torch.from_numpy(np.minimum(location, exchanged)).float()
    return Ranking(result, torch.full((len(data.detections.labels),), -torch.inf))


def average_precision(scores: NDArray[np.float64], hits: NDArray[np.bool_], positives: int) -> float:
    """Mean over the positives of the precision where each is ranked; those that are not ranked count as 0."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    return float((found / np.arange(1, len(order) + 1))[hits[order]].sum() / positives)


def auroc(wrong: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Probability that a wrong one is ranked before a right one."""
    both = np.sort(right)
    below = np.searchsorted(both, wrong, "left") + np.searchsorted(both, wrong, "right")
    return float(below.mean() / 2 / len(right))


def figures(data: Data, noisy: NoisyLabels, ranking: Ranking) -> list[float]:
    """In order of :data:`COLUMNS`."""
    labels = ranking.labels.double().numpy()
    errors = noisy.errors.numpy()
    wrong = errors > 0
    first = np.argsort(-labels, kind="stable")[: wrong.sum()]
    right = labels[~wrong]
    left_out = TruthRows(*(column[noisy.missing] for column in data.truths))
    asked = torch.isfinite(ranking.missing).nonzero().flatten()
    candidates = DetectionRows(*(column[asked] for column in data.detections))
    candidates = candidates._replace(scores=ranking.missing[asked])  # the surest of two on one object is the one
    found = (match_rows_of_any_class(candidates, left_out, 0.5).truth >= 0).numpy()
    scores = candidates.scores.double().numpy()
    n = len(noisy.missing)
    order = np.argsort(-scores, kind="stable")
    return [
        average_precision(labels, wrong, int(wrong.sum())),
        *(auroc(labels[errors == kind], right) for kind in KINDS.values()),
        float(wrong[first].mean()),
        average_precision(np.concatenate([labels, scores]), np.concatenate([wrong, found]), int(wrong.sum()) + n),
        float(found[order[:n]].sum() / n),
        float(found[order[: 2 * n]].sum() / n),
    ]


def main() -> None:
    """Print the mean and the spread over the seeds of each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with predictions")
    parser.add_argument("--data", type=Path, help="the data set; by default the runs' own")
    parser.add_argument("--seeds", type=int, default=10, help="how many times errors are put in")
    given = parser.parse_args()
    data = together(given.runs, given.data)
    methods = {"ours": ours, "one line": one_line}
    if importlib.util.find_spec("cleanlab"):
        methods["cleanlab"] = cleanlab
    shares = dict.fromkeys((LabelError.MISSING, *KINDS.values()), SHARE)
    results: dict[str, list[list[float]]] = {name: [] for name in methods}
    for seed in range(given.seeds):
        rng = np.random.default_rng(1000 + seed)
        noisy = with_errors(data.truths, data.sizes, len(data.class_names), shares, rng)
        for name, method in methods.items():
            results[name].append(figures(data, noisy, method(data, noisy.truths, seed)))
    print(f"{len(data.sizes)} images, {len(data.truths.labels)} labels, {len(data.detections.labels)} detections")
    print(f"{'':<10}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, rows in results.items():
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
        print(f"{name:<10}" + "".join(f"{m:>8.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)))
    facts = data.detections, data.truths, data.sizes, len(data.class_names)
    started = time.perf_counter()
    model = learn_label_errors(*facts, 0)
    learned = time.perf_counter()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        judge_labels(model, *facts)
        times.append(time.perf_counter() - begun)
    per_image = min(times) / len(data.sizes)
    print(f"learning {learned - started:.1f} s, ranking {min(times):.3f} s: {300 * per_image:.3f} s for 300 images")


if __name__ == "__main__":
    main()
