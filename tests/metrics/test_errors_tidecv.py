"""Error types and costs against tidecv, the package of the paper's authors, and hotcoco's, in Rust.

Where they differ by intent, the inputs are made alike: tidecv gets ground truth in reverse order, as it takes the first
of two objects that a detection overlaps alike and COCO's matcher the last; and it does not get detections that lie on
an ignored truth, which it keeps out of the AP but in the counts. hotcoco gets neither ignored truths, which it takes
for objects to be badly placed on, nor ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from detframe.metrics.average_precision import IGNORED
from detframe.metrics.error_costs import error_costs, rank_confusions
from detframe.metrics.errors import ErrorType, count_errors, find_errors
from detframe.metrics.rows import DetectionRows, TruthRows

Draw = Callable[[int, int, int, bool], tuple[DetectionRows, TruthRows]]
RECALLS = tuple(i / 100 for i in range(101))  # tidecv's
CLASSES = 3
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def run_tidecv(detections: DetectionRows, truths: TruthRows) -> Any:  # noqa: ANN401 - a TIDERun
    quantify: Any = pytest.importorskip("tidecv.quantify")
    truth, found = quantify.Data("truth"), quantify.Data("found")
    for image in torch.cat((detections.images, truths.images)).unique().tolist():
        truth.add_image(image, str(image))
    for image, box, label, ignore in reversed(list(zip(*(c.tolist() for c in truths), strict=True))):
        add = truth.add_ignore_region if ignore else truth.add_ground_truth
        add(image, label, box=xywh(box))
    # Numbered in the order in which they are counted, by which `in_order` can put them back.
    order = np.lexsort((-detections.scores.numpy(), detections.images.numpy()))
    for image, box, score, label in zip(*(c[order].tolist() for c in detections), strict=True):
        found.add_detection(image, label, score, box=xywh(box))
    return quantify.TIDERun(truth, found, pos_thresh=0.5, bg_thresh=0.1, mode="bbox", max_dets=10**9)


def without_ignored(detections: DetectionRows, truths: TruthRows) -> DetectionRows:
    kept = find_errors(detections, truths, CLASSES).outcome != IGNORED
    return DetectionRows(*(column[kept] for column in detections))


def xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def in_order(fixed: Any) -> Any:  # noqa: ANN401 - a ClassedAPDataObject
    """What tidecv fixed, with equal scores in the order that they had: it puts true positives last."""
    for points in fixed.objs.values():
        points.data_points = dict(sorted(points.data_points.items()))
    return fixed


def fixes(run: Any) -> list[Any]:  # noqa: ANN401 - ClassedAPDataObjects
    """The six types, false positives and false negatives, each fixed."""
    quantify: Any = pytest.importorskip("tidecv.quantify")
    kinds = quantify.TIDE._error_types
    assert [kind.short_name for kind in kinds] == ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]
    fixed = [run.fix_errors(lambda error, kind=kind: isinstance(error, kind)) for kind in kinds]
    fixed.append(run.fix_errors(transform=quantify.FalsePositiveError.fix))
    fixed.append(run.fix_errors(false_neg_dict=run.false_negatives))
    return [in_order(fix) for fix in fixed]


def ap_of(data: Any, label: int) -> float:  # noqa: ANN401 - a ClassedAPDataObject
    return float(data.objs[label].get_ap()) / 100 if label in data.objs else 0.0


@quick
@given(st.integers(0, 10**9), st.integers(1, 6), st.booleans())
def test_counts_equal_tidecv(random_rows: Draw, seed: int, images: int, tied: bool) -> None:
    detections, truths = random_rows(seed, images, CLASSES, tied)
    counts = count_errors(find_errors(detections, truths, CLASSES), CLASSES)
    run = run_tidecv(without_ignored(detections, truths), truths)
    assert counts.sum(dim=1).tolist() == list(run.count_errors().values())
    by_class = torch.zeros_like(counts)
    for row, errors in enumerate(run.error_dict.values()):
        for error in errors:
            by_class[row, (error.gt if row == ErrorType.MISSED else error.pred)["class"]] += 1
    assert torch.equal(counts, by_class)


@quick
@given(st.integers(0, 10**9), st.integers(1, 6), st.booleans())
def test_costs_equal_tidecv(random_rows: Draw, seed: int, images: int, tied: bool) -> None:
    detections, truths = random_rows(seed, images, CLASSES, tied)
    run = run_tidecv(without_ignored(detections, truths), truths)
    costs = error_costs(find_errors(detections, truths, CLASSES), CLASSES, recall_thresholds=RECALLS)
    fixed = fixes(run)
    per_class = [*costs.by_type_and_class, costs.false_positives_per_class, costs.false_negatives_per_class]
    present = truths.labels[~truths.ignore].unique().tolist()
    for label in present:
        ap = ap_of(run.ap_data, label)
        assert float(costs.ap_per_class[label]) == pytest.approx(ap, abs=1e-6)
        ours = [float(values[label]) for values in per_class]
        assert ours == pytest.approx([ap_of(fix, label) - ap for fix in fixed], abs=1e-6)
    assume(len(present) == CLASSES)  # tidecv's mean takes in classes without an object
    overall = [*costs.by_type.tolist(), costs.false_positives, costs.false_negatives]
    assert costs.ap == pytest.approx(run.ap / 100, abs=1e-6)
    assert overall == pytest.approx([(fix.get_mAP() - run.ap) / 100 for fix in fixed], abs=1e-6)
    if not tied:  # then tidecv's own figures, as it reports them
        reported = [*run.fix_main_errors().values(), *run.fix_special_errors().values()]
        assert overall == pytest.approx([cost / 100 for cost in reported], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_costs_of_a_slice_equal_tidecv_on_it(random_rows: Draw, seed: int) -> None:
    detections, truths = random_rows(seed, 12, CLASSES, False)
    images = torch.arange(12) % 2 == 0
    costs = error_costs(find_errors(detections, truths, CLASSES), CLASSES, images, RECALLS)
    kept = without_ignored(detections, truths)
    found, present = images[kept.images], images[truths.images]
    run = run_tidecv(DetectionRows(*(c[found] for c in kept)), TruthRows(*(c[present] for c in truths)))
    reported = [*run.fix_main_errors().values(), *run.fix_special_errors().values()]
    overall = [*costs.by_type.tolist(), costs.false_positives, costs.false_negatives]
    assert overall == pytest.approx([cost / 100 for cost in reported], abs=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_costs_of_pairs_equal_tidecv(random_rows: Draw, seed: int, tied: bool) -> None:
    quantify: Any = pytest.importorskip("tidecv.quantify")
    detections, truths = random_rows(seed, 12, CLASSES, tied)
    run = run_tidecv(without_ignored(detections, truths), truths)
    ranking = rank_confusions(find_errors(detections, truths, CLASSES), CLASSES, recall_thresholds=RECALLS)
    assert len(ranking) > 2
    for pair in ranking:

        def confused(error: Any, wanted: tuple[int, int] = pair[:2]) -> bool:  # noqa: ANN401 - one of tidecv's
            return isinstance(error, quantify.ClassError) and (error.gt["class"], error.pred["class"]) == wanted

        assert pair.errors == sum(map(confused, run.errors))
        gain = in_order(run.fix_errors(confused)).get_mAP() - run.ap
        assert pair.cost == pytest.approx(gain / 100, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_counts_and_costs_equal_hotcoco(random_rows: Draw, seed: int) -> None:
    hotcoco: Any = pytest.importorskip("hotcoco")
    detections, truths = random_rows(seed, 8, CLASSES, False)
    truths = TruthRows(*(column[~truths.ignore] for column in truths))
    annotations = [
        {"id": row + 1, "image_id": image, "category_id": label, "bbox": xywh(box), "area": 1.0, "iscrowd": 0}
        for row, (image, box, label, _) in enumerate(zip(*(c.tolist() for c in truths), strict=True))
    ]
    images = [{"id": i, "width": 200, "height": 200, "file_name": str(i)} for i in range(8)]
    categories = [{"id": i, "name": str(i)} for i in range(CLASSES)]
    coco = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    results = [
        {"image_id": image, "category_id": label, "bbox": xywh(box), "score": score}
        for image, box, score, label in zip(*(c.tolist() for c in detections), strict=True)
    ]
    evaluation = hotcoco.COCOeval(coco, coco.load_res(results), "bbox")
    evaluation.evaluate()
    theirs = evaluation.tide_errors(0.5, 0.1)
    table = find_errors(detections, truths, CLASSES)
    costs = error_costs(table, CLASSES)
    names = ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"]
    assert dict(zip(names, count_errors(table, CLASSES).sum(dim=1).tolist(), strict=True)) == theirs["counts"]
    assert costs.ap == pytest.approx(theirs["ap_base"], abs=1e-6)
    overall = [*costs.by_type.tolist(), costs.false_positives, costs.false_negatives]
    assert overall == pytest.approx([theirs["delta_ap"][name] for name in (*names, "FP", "FN")], abs=1e-6)
