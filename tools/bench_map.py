"""Time and memory of mean average precision, side by side, on made-up detections.

Each implementation runs in a process of its own, on one thread, so that its peak memory is its own. The figures are
held to pycocotools': the twelve of COCO and the AP of every class.

    python tools/bench_map.py                       # 300 images, under a minute
    python tools/bench_map.py --images 5000         # the workload of docs/results.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detframe.structures import Detections, Targets

TWELVE = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
TWELVE += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]


class Workload(NamedTuple):
    """What is evaluated, as padded tensors."""

    detections: Detections
    targets: Targets
    batch_size: int


class Result(NamedTuple):
    """What one implementation gave and took."""

    update_seconds: float
    compute_seconds: float
    peak_mb: float
    figures: list[float]  # the twelve of COCO
    ap_by_class: dict[int, float]


def make_workload(images: int, detections: int, classes: int, objects: int, batch_size: int, seed: int) -> Workload:
    """Objects of all sizes, some classes commoner than others; detections near them and anywhere.

    Two of a hundred objects are crowds, and scores have three digits, so that some tie.

    Args:
        images: Number of images.
        detections: Per image.
        classes: Number of classes, the first the commonest.
        objects: Per image, on average.
        batch_size: Images per update.
        seed: Of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def boxes(*shape: int) -> Tensor:
        sides = torch.exp(uniform(*shape, 2) * 4 + 2)  # 7 to 400 pixels
        corners = uniform(*shape, 2) * 500
        return torch.cat((corners, corners + sides), dim=-1)

    def labels(*shape: int) -> Tensor:
        return (uniform(*shape) ** 2 * classes).long()

    rows = 2 * objects
    truth, truth_labels = boxes(images, rows), labels(images, rows)
    valid = torch.arange(rows) < torch.randint(0, rows + 1, (images, 1), generator=generator)
    which = torch.randint(0, rows, (images, detections), generator=generator)
    near = valid.gather(1, which) & (uniform(images, detections) < 0.3)
    picked = truth.gather(1, which[..., None].expand(-1, -1, 4))
    sides = (picked[..., 2:] - picked[..., :2]).repeat(1, 1, 2)
    shift = torch.randn(images, detections, 4, generator=generator) * 0.08 * sides
    found = torch.where(near[..., None], picked + shift, boxes(images, detections))
    found[..., 2:] = torch.maximum(found[..., 2:], found[..., :2] + 1)
    same_class = near & (uniform(images, detections) < 0.9)
    found_labels = torch.where(same_class, truth_labels.gather(1, which), labels(images, detections))
    scores = (uniform(images, detections) * 0.7 + 0.3 * near).mul(1000).round().div(1000)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Workload(
        Detections(
            found.gather(1, order[..., None].expand(-1, -1, 4)),
            scores,
            found_labels.gather(1, order),
            torch.ones_like(order, dtype=torch.bool),
        ),
        Targets(truth * valid[..., None], truth_labels * valid, (uniform(images, rows) < 0.02) & valid, valid),
        batch_size,
    )


def run_detframe(work: Workload) -> Callable[[], Result]:
    """Our own, from batches of tensors."""
    from detframe.metrics.mean_ap import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=True)
    ids = torch.arange(len(work.targets.labels))

    def run() -> Result:
        start = time.perf_counter()
        for first in range(0, len(ids), work.batch_size):
            part = slice(first, first + work.batch_size)
            detections = Detections(*(tensor[part] for tensor in work.detections))
            targets = Targets(*(tensor[part] for tensor in work.targets))
            metric.update_batch(detections, targets, None, ids[part])
        updated = time.perf_counter()
        results = metric.compute()
        return _from_torchmetrics(results, updated - start, time.perf_counter() - updated)

    return run


def run_torchmetrics(work: Workload, backend: Literal["pycocotools", "faster_coco_eval"]) -> Callable[[], Result]:
    """Torchmetrics' class, at the thresholds of pycocotools instead of its own in float32."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        class_metrics=True,
        backend=backend,
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    found, truth = work.detections, work.targets
    keys = ("boxes", "scores", "labels")
    preds = [{key: getattr(found, key)[i] for key in keys} for i in range(len(found.scores))]
    target = [
        {"boxes": truth.boxes[i][real], "labels": truth.labels[i][real], "iscrowd": truth.ignore[i][real].long()}
        for i, real in enumerate(truth.valid)
    ]

    def run() -> Result:
        start = time.perf_counter()
        for first in range(0, len(preds), work.batch_size):
            metric.update(preds[first : first + work.batch_size], target[first : first + work.batch_size])
        updated = time.perf_counter()
        results = metric.compute()
        return _from_torchmetrics(results, updated - start, time.perf_counter() - updated)

    return run


def run_pycocotools(work: Workload) -> Callable[[], Result]:
    """The reference; making its dictionaries is what an update is to the others."""
    import pycocotools.coco
    import pycocotools.cocoeval

    coco_class: Any = pycocotools.coco.COCO
    evaluation_class: Any = pycocotools.cocoeval.COCOeval

    def load(dataset: dict[str, Any]) -> Any:  # noqa: ANN401 - pycocotools has no types
        coco = coco_class()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    return lambda: _run_coco(work, load, evaluation_class)


def run_hotcoco(work: Workload) -> Callable[[], Result]:
    """A Rust implementation with pycocotools' interface."""
    import hotcoco

    return lambda: _run_coco(work, hotcoco.COCO, hotcoco.COCOeval)


def _run_coco(work: Workload, load: Callable[[dict[str, Any]], Any], evaluation_class: Callable[..., Any]) -> Result:
    start = time.perf_counter()
    dataset, results = coco_dictionaries(work)
    made = time.perf_counter()
    coco = load(dataset)
    evaluation = evaluation_class(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [T, R, C]
    done = time.perf_counter()
    by_class = dict(zip(map(int, evaluation.params.catIds), precision.mean(axis=(0, 1)).tolist(), strict=True))
    return Result(made - start, done - made, 0.0, [float(value) for value in evaluation.stats], by_class)


def coco_dictionaries(work: Workload) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The workload as COCO's annotations and results."""

    def columns(boxes: Tensor, used: Tensor, *more: Tensor) -> zip[tuple[Any, ...]]:
        image = used.nonzero()[:, 0]
        corners = boxes[used].double()
        boxes_xywh = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1)
        return zip(*(t.tolist() for t in (image, boxes_xywh, *(values[used] for values in more))), strict=True)

    found, truth = work.detections, work.targets
    annotations = [
        {"id": n, "image_id": i, "bbox": box, "area": box[2] * box[3], "category_id": label, "iscrowd": int(crowd)}
        for n, (i, box, label, crowd) in enumerate(columns(truth.boxes, truth.valid, truth.labels, truth.ignore), 1)
    ]
    results = [
        {"image_id": i, "bbox": box, "category_id": label, "score": score}
        for i, box, label, score in columns(found.boxes, found.valid, found.labels, found.scores)
    ]
    labels = sorted({row["category_id"] for row in (*annotations, *results)})
    images = [{"id": i, "width": 1000, "height": 1000, "file_name": str(i)} for i in range(len(found.scores))]
    categories = [{"id": label, "name": str(label)} for label in labels]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


def _from_torchmetrics(results: dict[str, Tensor], update_seconds: float, compute_seconds: float) -> Result:
    labels, ap = results["classes"].reshape(-1).tolist(), results["map_per_class"].reshape(-1).tolist()
    figures = [float(results[name]) for name in TWELVE]
    return Result(update_seconds, compute_seconds, 0.0, figures, dict(zip(labels, ap, strict=True)))


IMPLEMENTATIONS: dict[str, tuple[str, Callable[[Workload], Callable[[], Result]]]] = {
    "pycocotools": ("pycocotools", run_pycocotools),
    "torchmetrics": ("pycocotools", lambda work: run_torchmetrics(work, "pycocotools")),
    "torchmetrics, faster-coco-eval": ("faster_coco_eval", lambda work: run_torchmetrics(work, "faster_coco_eval")),
    "hotcoco": ("hotcoco", run_hotcoco),
    "detframe": ("detframe", run_detframe),
}
"""What each needs installed, and how it is prepared. The first that runs is what the others are held to."""


def measure(name: str, work: Workload) -> Result:
    """Run one implementation in this process."""
    torch.set_num_threads(1)
    run = IMPLEMENTATIONS[name][1](work)
    before = reset_peak_memory()
    with contextlib.redirect_stdout(io.StringIO()):
        result = run()
    return result._replace(peak_mb=(peak_memory() - before) / 2**20)


def reset_peak_memory() -> int:
    """Forget the highest memory of this process so far, and return the present one in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """The highest memory of this process since then in bytes (Linux)."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def table(results: dict[str, Result]) -> str:
    """Markdown: seconds, memory and the largest difference to the first."""
    reference = next(iter(results.values()))
    lines = [
        "| | update s | compute s | total s | peak MB added | map | map_50 | map_75 | largest difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, result in results.items():
        pairs = list(zip(result.figures, reference.figures, strict=True))
        pairs += [(result.ap_by_class.get(label, -1.0), ap) for label, ap in reference.ap_by_class.items()]
        difference = max(abs(one - other) for one, other in pairs)
        seconds = (result.update_seconds, result.compute_seconds, result.update_seconds + result.compute_seconds)
        cells = [*(f"{value:.2f}" for value in seconds), f"{result.peak_mb:.0f}"]
        cells += [*(f"{value:.5f}" for value in result.figures[:3]), f"{difference:.1e}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure each installed implementation in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"images": 300, "detections": 100, "classes": 80, "objects": 7, "batch-size": 16, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    parser.add_argument("--measure", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    options = [args.images, args.detections, args.classes, args.objects, args.batch_size, args.seed]
    if args.measure:
        print(json.dumps(measure(args.measure, make_workload(*options))))
        return
    results = {}
    for name in args.only:
        if find_spec(IMPLEMENTATIONS[name][0]) is None:
            print(f"{name}: not installed, left out", file=sys.stderr)
            continue
        command = [sys.executable, __file__, "--measure", name]
        for option, value in zip(sizes, options, strict=True):
            command += [f"--{option}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        result = Result._make(json.loads(done.stdout.splitlines()[-1]))
        results[name] = result._replace(ap_by_class={int(label): ap for label, ap in result.ap_by_class.items()})
        print(f"{name}: {result.update_seconds + result.compute_seconds:.1f} s", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
