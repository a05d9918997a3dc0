"""The verb ``compare``: what two detectors differ in on the same images, and whether a gate lets the new one in."""

from __future__ import annotations

import shlex
import sys
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from detframe.refusals import refuse

if TYPE_CHECKING:
    from detframe.analysis.evaluation import Evaluation


def compare(
    base: Path,
    candidate: Path,
    out: Path | None = None,
    data: Path | None = None,
    gate: Path | None = None,
    benchmark: Path | None = None,
    aim: str = "f1",
    margin: float = 0.01,
    measured: int = 1000,
    groups: str | None = None,
    replicates: int = 2000,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Say what a change brought: two detectors on the same images, from their saved predictions.

    BASE is what is in use and CANDIDATE what is to replace it: folders of runs, or files of COCO results with --data.

    Each figure gets a difference with a 95 % interval (bootstrap of the images, the same for both), a p-value (both
    change places in images at random; corrected over classes and over slices) and the smallest difference that this
    test set would have shown. The verdict is one of: better, worse, same within margin, cannot tell.

    Written to OUT: index.html, with the objects that were fixed and those that broke, side by side; compare.md, for a
    pull request; compare.json.

    A gate is a YAML file. Every condition has to hold:

      margins: {map: 0.01, "ap/*": 0.03}   # by less than this worse, surely; the first pattern that fits decides
      must_improve: [map]                  # verdict "better"
      must_pass: [a.jpg, {image: b.jpg, annotation: 7}]  # no mistake in an image; an object found; or a JSON file
      slower: 1.1                          # times, of --benchmark
      larger: 1.0

    Exit code: 0 without a gate, or when all of it holds; 1 when it does not; 2 when the input cannot be used.

    Args:
        base: Folder of a run, with its test_predictions.parquet, or COCO results.
        candidate: Likewise, on the same test data.
        out: Folder to write; by default `comparison` in CANDIDATE, or beside it.
        data: The data set that was evaluated, as `detframe check` takes it; by default the run's own.
        gate: The gate's file.
        benchmark: benchmark.json of `detframe benchmark BASE_FILE CANDIDATE_FILE`, for speed and size.
        aim: What the operating thresholds of each are chosen for, as for `diagnose`, on this very data.
        margin: Up to which a difference is none in practice, where the gate does not say.
        measured: So many images are read to slice by brightness, blur and noise; 0 reads none.
        groups: Column of the images' metadata, such as board: images of one group are not independent.
        replicates: Of the bootstrap and of the permutation.
        seed: Of both.
        json: Print the figures as JSON and nothing else.
    """
    from detframe.analysis.comparison import compare_evaluations
    from detframe.analysis.comparison_report import as_json, as_markdown, headline, write_comparison_page
    from detframe.analysis.diagnosis import parse_aim
    from detframe.analysis.gate import Gate, judge, read_gate, read_speed, require_answerable
    from detframe.analysis.slicing import image_properties
    from detframe.data.annotations import DataError
    from detframe.data.images import ImageError

    console = Console(stderr=True, quiet=json, highlight=False)
    folder = out or (candidate if candidate.is_dir() else candidate.parent) / "comparison"
    try:
        chosen = parse_aim(aim)
        asked = Gate({}, [], [], None, None) if gate is None else read_gate(gate)
        speed = None if benchmark is None else read_speed(benchmark)
        evaluations = [_read(path, data) for path in (base, candidate)]
        require_answerable(asked, evaluations[1], speed)
        with console.status("Reading images") as status:
            of_images = image_properties(evaluations[0], measured)
            status.update("Counting")
            found = compare_evaluations(
                evaluations[0],
                evaluations[1],
                chosen,
                {**asked.margins, "*": asked.margins.get("*", margin)},
                of_images,
                replicates,
                seed,
                groups,
            )
            judgements = None if gate is None else judge(asked, found, speed)
            facts = {
                "command": shlex.join(["detframe", *sys.argv[1:]]),
                "base": str(base),
                "candidate": str(candidate),
                "hashes": {"base": _hashes(base), "candidate": _hashes(candidate)},
                "images": len(evaluations[0].image_ids),
                "replicates": replicates,
                "seed": seed,
            }
            document = as_json(found, judgements, speed, facts)
            folder.mkdir(parents=True, exist_ok=True)
            write_comparison_page(
                folder / "index.html", found, judgements, speed, lambda what: status.update(f"Drawing {what}")
            )
            (folder / "compare.md").write_text(as_markdown(found, judgements, speed, facts), encoding="utf-8")
            (folder / "compare.json").write_text(dumps(document, indent=1), encoding="utf-8")
    except (DataError, ImageError, ValueError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps(document))
    else:
        columns = ("", "base", "candidate", "gain", "95 % interval", "verdict")
        table = Table(*columns, box=SIMPLE_HEAD, padding=0)  # within 80 columns
        for line in found.lines:
            if line.family == "overall" or line.name.startswith("ap/"):
                interval = f"{line.low:+.4f} to {line.high:+.4f}"
                figures = (f"{line.base:.4f}", f"{line.candidate:.4f}", f"{line.gain:+.4f}", interval)
                table.add_row(line.name, *figures, line.verdict.value)
        printer = Console(highlight=False, markup=False)
        printer.print(table)
        for judgement in judgements or ():
            if not judgement.holds:
                printer.print(f"FAILS  {judgement.condition}: {judgement.found}")
        printer.print(f"{headline(found, judgements)}\nWritten to {folder / 'index.html'}", soft_wrap=True)
    return 0 if judgements is None or all(judgement.holds for judgement in judgements) else 1


def _read(path: Path, data: Path | None) -> Evaluation:
    from detframe.analysis.evaluation import read_results, read_run
    from detframe.data.annotations import DataError

    if path.is_file():
        if data is None:
            raise DataError(f"{path}: is a file of COCO results. Give the data that it is about with --data.")
        return read_results(path, data)
    return read_run(path, data)


def _hashes(path: Path) -> dict[str, str]:
    """Of the data and the checkpoint of a run, as its metrics file has them, or of a file of results."""
    from detframe.analysis.evaluation import STAGES
    from detframe.data.annotations import file_digest

    if path.is_file():
        return {"predictions": file_digest(path).hex()}
    for metrics in (path / f"{stage}_metrics.json" for stage in STAGES):
        if metrics.is_file():
            content = loads(metrics.read_text(encoding="utf-8"))
            return {name: content[name] for name in ("dataset_hash", "checkpoint_hash") if name in content}
    return {}
