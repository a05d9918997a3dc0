"""The verb ``mine``: of a pool of images without labels, those that the detector would learn most from."""

from __future__ import annotations

import csv
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from detframe.refusals import refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from detframe.analysis.failure_modes import Findings
    from detframe.analysis.mining import Selection
    from detframe.analysis.pool import Pool

_MODES_SHOWN = 12


def mine(
    pool: Path,
    run: Path | None = None,
    n: int = 100,
    out: Path | None = None,
    data: Path | None = None,
    aim: str = "f1",
    measured: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Choose from a pool of unlabelled images those that the detector would learn most from, by what it fails at.

    Let the detector look at the pool, and say what it fails at on images that are labelled:

      python -m detframe predict --ckpt_path BEST --data.predict IMAGES --predictions.out POOL --embeddings.write true
      python -m detframe validate --config RUN/config.yaml --ckpt_path BEST --embeddings.write true
      python -m detframe mine POOL --run VALIDATED --n 100

    An image is worth the doubt of the detector in it, weighed by the failure modes: weak classes, confused pairs, weak
    slices, gaps in the training data. Images are taken that are worth much and unlike those taken already; none that is
    nearly the same as another, or as one that the run was trained or evaluated on.

    Written to OUT: chosen.csv and chosen.json, the list in order with a reason for each; index.html, the images with
    what was found in them; preannotations.json, the detections from the operating thresholds on as COCO, to start
    labelling from.

    Exit code: 0 when they are written; 2 when the input cannot be used.

    Args:
        pool: Folder that `detframe predict --embeddings.write true` wrote.
        run: Folder that `detframe validate` or `test` wrote with the same checkpoint, with `--embeddings.write true`.
            Take validation where you can: figures of a test split that images were chosen by are too good.
        n: How many to choose.
        out: Folder to write; by default `chosen` in POOL.
        data: The data set that RUN evaluated, as `detframe check` takes it; by default the run's own.
        aim: What the threshold of each class is chosen for, as in `detframe diagnose`.
        measured: So many evaluated images are read to find slices by brightness, blur and noise; 0 reads none.
        seed: Of the bootstrap behind the slices, and between images of the same worth.
        overwrite: Replace the files of an earlier choice.
        json: Print chosen.json's content and nothing else.
    """
    from detframe.analysis.failure_modes import read_findings
    from detframe.analysis.mining import select
    from detframe.analysis.mining_page import write_contact_sheet
    from detframe.analysis.pool import read_pool
    from detframe.data.annotations import DataError
    from detframe.data.images import ImageError

    console = Console(stderr=True, quiet=json, highlight=False)
    folder = out or pool / "chosen"
    try:
        if run is None:
            raise DataError("Name with --run the folder that `detframe validate --embeddings.write true` wrote.")
        if n < 1:
            raise DataError(f"--n is {n}; choose at least one image.")
        if (folder / "chosen.json").exists() and not overwrite:
            raise DataError(f"{folder}: holds an earlier choice. Name another folder with --out, or add --overwrite.")
        with console.status("Reading the pool") as status:
            read = read_pool(pool)
            status.update("Diagnosing the run")
            findings = read_findings(run, data, aim, measured, seed)
            status.update(f"Choosing from {len(read.image_ids)} images")
            selection = select(findings, read, n, seed)
            document = as_document(findings, read, selection, n, seed)
            folder.mkdir(parents=True, exist_ok=True)
            thresholds = findings.diagnosis.evidence.thresholds
            _write_preannotations(folder / "preannotations.json", findings, read, selection, thresholds)
            _write_list(folder / "chosen.csv", document)
            write_contact_sheet(
                folder / "index.html", findings, read, selection, lambda what: status.update(f"Drawing {what}")
            )
            # The last, since it says that the choice is whole.
            (folder / "chosen.json").write_text(dumps(document, indent=1), encoding="utf-8")
    except (DataError, ImageError, ValueError, OSError) as error:
        return refuse(error, json)
    if json:
        print(dumps(document))
    else:
        _print(document, folder)
    return 0


def as_document(findings: Findings, pool: Pool, selection: Selection, n: int, seed: int) -> dict[str, Any]:
    """The content of ``chosen.json``."""
    from detframe.analysis.mining import by_kind, in_words

    return {
        "pool": str(pool.folder),
        "run": str(findings.folder),
        "checkpoint_hash": pool.checkpoint_hash or None,
        "pool_images": len(pool.image_ids),
        "asked_for": n,
        "seed": seed,
        "verdicts": findings.verdicts is not None,
        "chosen_for": by_kind(selection),
        "left_out": {
            split: [pool.file_names[image] for image in images] for split, images in selection.left_out.items()
        },
        "failure_modes": [mode._asdict() for mode in selection.modes],
        "images": [
            {
                "rank": rank,
                "image_id": int(pool.image_ids[chosen.image]),
                "file_name": pool.file_names[chosen.image],
                "path": str(pool.paths[chosen.image]),
                "score": round(chosen.score, 4),
                "expected_objects": round(chosen.objects, 2),
                "reason": "; ".join(map(in_words, chosen.reasons)),
                "modes": [reason._asdict() for reason in chosen.reasons],
                "nearly_the_same": [pool.file_names[image] for image in chosen.twins],
            }
            for rank, chosen in enumerate(selection.chosen, 1)
        ],
    }


def _write_list(path: Path, document: dict[str, Any]) -> None:
    columns = ("rank", "file_name", "score", "expected_objects", "reason")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row[column] for column in columns] for row in document["images"])


def _write_preannotations(
    path: Path, findings: Findings, pool: Pool, selection: Selection, thresholds: NDArray[np.float64]
) -> None:
    """Detections of the chosen images as COCO annotations, with the run's classes."""
    from detframe.analysis.mining import detections_of
    from detframe.data.annotations import Category, build_index
    from detframe.data.coco import write_coco

    rows = [detections_of(pool, chosen.image, thresholds).numpy() for chosen in selection.chosen]
    images = [chosen.image for chosen in selection.chosen]
    found = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    table = findings.evaluation.table
    labels, categories = table["label"].to_pylist(), table["category_id"].to_pylist()
    ids = dict(zip(labels, categories, strict=True)) | pool.category_ids
    names = findings.evaluation.class_names
    free = iter(range(max([*ids.values(), len(names)]) + 1, 2**31))  # for classes that have no row anywhere
    index = build_index(
        source=path,
        image_root=path.parent,
        categories=[Category(ids[label] if label in ids else next(free), name) for label, name in enumerate(names)],
        image_ids=pool.image_ids[images],
        file_names=[pool.file_names[image] for image in images],
        image_sizes=pool.sizes[images],
        image_of_box=np.repeat(np.arange(len(rows)), [len(own) for own in rows]),
        boxes=pool.detections.boxes.numpy()[found].astype(np.float64),
        labels=pool.detections.labels.numpy()[found],
        ignore=np.zeros(len(found), dtype=np.bool_),
        areas=np.full(len(found), np.nan),
        annotation_ids=np.arange(1, len(found) + 1),
        metadata=[pool.metadata[image] for image in images],
    )
    write_coco(index, path)


def _print(document: dict[str, Any], folder: Path) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table("what the detector fails at", "AP points", "objects chosen", "by chance", title_justify="left")
    for mode in document["failure_modes"][:_MODES_SHOWN]:
        kind = "" if mode["kind"] == "data gap" else f"{mode['kind']} "
        table.add_row(
            f"{kind}{mode['name']}", f"{100 * mode['cost']:.2f}", f"{mode['objects']:.1f}", f"{mode['by_chance']:.1f}"
        )
    console.print(table)
    images = document["images"]
    if len(images) < document["asked_for"]:
        console.print(f"Only {len(images)} of {document['asked_for']}: the pool has no more images that differ.")
    for split, names in document["left_out"].items():
        if names:
            console.print(f"{len(names)} images of the pool are nearly ones of {split} and were left out.")
    if not document["verdicts"]:
        console.print("Gaps in the training data could not be looked for: RUN has no embeddings.")
    console.print(
        f"Chose {len(images)} of {document['pool_images']} images, with about "
        f"{sum(image['expected_objects'] for image in images):.0f} objects; written to {folder / 'index.html'}"
    )
