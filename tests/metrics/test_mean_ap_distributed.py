"""Two processes give the figures of one, whatever each of them holds.

The file is its own worker: a test starts it twice as a script, once for all cases, because importing torch takes longer
than the cases do.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from detframe.metrics.mean_ap import MeanAveragePrecision
from detframe.structures import Detections, Targets

Results = dict[str, dict[str, Tensor]]
IMAGES = 7

# Which images each process sees, by id. 7 does not divide by 2; images 2 and 3 hold nothing.
CASES = {
    "interleaved": [[0, 2, 4, 6], [1, 3, 5]],
    "interleaved, other order": [[6, 4, 2, 0], [1, 5, 3]],
    "halves": [[0, 1, 2, 3], [4, 5, 6]],
    "none on the first": [[], [0, 1, 2, 3, 4, 5, 6]],
    "none on the second": [[6, 5, 4, 3, 2, 1, 0], []],
    "no box on the second": [[0, 1, 4, 5, 6], [2, 3]],
    "repeated to pad": [[0, 2, 4, 6], [1, 3, 5, 0]],
    "all twice": [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]],
}


def images_of(ids: list[int]) -> tuple[Detections, Targets, Tensor, Tensor]:
    """The same images on every process, with scores that tie between images."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 40, (IMAGES, 5, 2), generator=generator).float()
    boxes = torch.cat((corners, corners + torch.randint(10, 80, (IMAGES, 5, 2), generator=generator)), dim=2)
    labels = torch.randint(0, 2, (IMAGES, 5), generator=generator)
    shift = torch.randint(-4, 5, (IMAGES, 12, 4), generator=generator)
    which = torch.randint(0, 5, (IMAGES, 12), generator=generator)
    found = boxes.gather(1, which[..., None].expand(-1, -1, 4)) + shift
    scores = (torch.randint(0, 4, (IMAGES, 12), generator=generator) / 4).sort(dim=1, descending=True).values
    something = torch.tensor([True, True, False, False, True, True, True])[:, None]
    detections = Detections(found, scores, labels.gather(1, which), something.expand(-1, 12))
    targets = Targets(boxes, labels, torch.rand(IMAGES, 5, generator=generator) < 0.2, something.expand(-1, 5))
    rows = torch.tensor(ids, dtype=torch.int64)
    areas = boxes[..., 2] * 30
    return Detections(*(t[rows] for t in detections)), Targets(*(t[rows] for t in targets)), areas[rows], rows * 10 - 30


def dictionaries_of(ids: list[int]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """In torchmetrics' format, which has no ids."""
    detections, targets, _, _ = images_of(ids)
    preds, target = [], []
    for i in range(len(ids)):
        used, real = detections.valid[i], targets.valid[i]
        preds.append({k: getattr(detections, k)[i][used] for k in ("boxes", "scores", "labels")})
        target.append({"boxes": targets.boxes[i][real], "labels": targets.labels[i][real]})
        target[-1]["iscrowd"] = targets.ignore[i][real].long()
    return preds, target


def count(metric: MeanAveragePrecision, ids: list[int]) -> MeanAveragePrecision:
    for start in range(0, len(ids), 2):
        metric.update_batch(*images_of(ids[start : start + 2]))
    return metric


def work(rank: int, folder: Path) -> Results:
    """All cases on one of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    results: Results = {}
    for name, shares in CASES.items():
        results[name] = count(MeanAveragePrecision(class_metrics=True), shares[rank]).compute()

    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(*dictionaries_of(CASES["interleaved"][rank]))
    results["without ids"] = metric.compute()

    metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False, compute_with_cache=False)
    count(metric, CASES["halves"][rank])
    with metric.sync_context():
        results["in a sync context"] = metric.compute()
    results["own share"] = metric.compute()

    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    results["group of its own"] = count(MeanAveragePrecision(process_group=alone), CASES["halves"][rank]).compute()

    metric = MeanAveragePrecision(dist_sync_on_step=True, class_metrics=True)
    results["in a step"] = metric(*dictionaries_of(CASES["halves"][rank][:3]))
    results["after a step"] = metric.compute()

    results["nothing"] = MeanAveragePrecision(class_metrics=True).compute()
    dist.destroy_process_group()
    return results


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    folder = tmp_path_factory.mktemp("distributed")
    workers = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture(scope="module")
def one_process() -> dict[str, Tensor]:
    results = count(MeanAveragePrecision(class_metrics=True), list(range(IMAGES))).compute()
    assert 0 < results["map"] < 1
    return results


@pytest.mark.parametrize("case", [*CASES, "in a sync context"])
def test_two_processes_equal_one(case: str, two_processes: list[Results], one_process: dict[str, Tensor]) -> None:
    for results in two_processes:
        assert_same(results[case], one_process)


def test_without_ids_images_are_in_the_order_of_the_sampler(two_processes: list[Results]) -> None:
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(*dictionaries_of(list(range(IMAGES))))
    for results in two_processes:
        assert_same(results["without ids"], metric.compute())


def test_after_sync_a_process_has_its_own_share_again(two_processes: list[Results]) -> None:
    for rank, results in enumerate(two_processes):
        own = count(MeanAveragePrecision(class_metrics=True), CASES["halves"][rank]).compute()
        assert_same(results["own share"], own)
        assert_same(results["group of its own"], count(MeanAveragePrecision(), CASES["halves"][rank]).compute())


def test_sync_on_step(two_processes: list[Results]) -> None:
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(*dictionaries_of([0, 4, 1, 5, 2, 6]))
    for results in two_processes:
        assert_same(results["in a step"], metric.compute())
        assert_same(results["after a step"], metric.compute())


def test_no_image_on_any_process(two_processes: list[Results]) -> None:
    for results in two_processes:
        assert results["nothing"]["map"] == -1
        assert results["nothing"]["classes"].numel() == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(work(int(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[2]) / f"{sys.argv[1]}.pt")
