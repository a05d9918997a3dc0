"""The verb ``apply``: a new version of a data set, beside the old one, with its labels mended as was decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from detframe.curation.fixes import Fix, append_fixes, read_fixes
from detframe.curation.labels import labels_of_image, same_label, same_labels, size_of
from detframe.curation.lineage import applied_before, lineage_of, write_lineage
from detframe.curation.mending import STATES, Edit, Outcome, decided, mend, unreviewed
from detframe.curation.rewriting.coco import write_coco_version
from detframe.curation.rewriting.files import FIXES_FILE, Edits, Version
from detframe.curation.rewriting.voc import write_voc_version
from detframe.curation.rewriting.yolo import sayable_in_line, write_yolo_version
from detframe.data.annotations import AnnotationIndex, DataError, file_digest, require_sound
from detframe.data.images import ImageError
from detframe.data.label_queue import Label, Queue, read_queue
from detframe.data.sources import read_splits
from detframe.listing import below
from detframe.refusals import refuse
from detframe.unfinished import unfinished

_NAMED = 20
_WORDS = {
    "applied": "applied",
    "already": "already so",
    "kept": "label found right",
    "left": "left for later",
    "refused": "refused",
}


class Parent(NamedTuple):
    """The data set that a version is made of."""

    data: Path
    splits: dict[str, AnnotationIndex]
    digests: dict[str, list[bytes]]  # SHA-256 of the images, by split


class Image(NamedTuple):
    """An image by where it is."""

    split: str
    place: int


def apply(
    fixes: list[Path] | None = None,
    data: Path | None = None,
    out: Path | None = None,
    queue: Path | None = None,
    auto: float | None = None,
    latest_wins: bool = False,
    allow_refused: bool = False,
    json: bool = False,
) -> int:
    """Write a new version of a data set with its labels mended, beside the old one and never over it.

      python -m detframe apply fixes.jsonl --data DATA --out NEW
      python -m detframe apply fixes.jsonl --queue queue.jsonl --auto 0.95 --data DATA --out NEW

    NEW has the format of DATA, all of its splits, its other fields and its ids; images are linked. NEW/lineage.json
    says what it was made of and by which decisions, and NEW/fixes.jsonl holds those: to undo one, drop its line and
    apply the rest to DATA again, or let `detframe review` append that it is taken back.

    A decision is matched by the content of its image and by the box, to 0.01 px, and class of its label, so it survives
    a new export with other names and ids. One whose image or label has changed is refused by name, and then nothing is
    written. A decision that DATA follows already is counted and is no error.

    Where two people decided differently about one suggestion, nothing is written either: let one decide again, or give
    --latest_wins. What a person decided always goes before what is taken without review.

    Exit code: 0 when NEW is written; 2, with nothing written, when a decision is refused or the input cannot be used.

    Args:
        fixes: Files of decisions, as `detframe review` and `detframe take-back` write them.
        data: The data set, as `detframe check` takes it; by default the one that the queue is about.
        out: Folder to make. It must not exist.
        queue: Suggestions of `detframe label-errors`, of which those that are sure enough are taken without review.
        auto: The least probability, 0..1, from which on a suggestion of the queue is taken without review.
        latest_wins: Where two people disagree, follow the later decision.
        allow_refused: Write NEW without the decisions that are refused.
        json: Print the counts and all that was refused as one JSON document and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=json)
    try:
        document = _apply(fixes or [], data, out, queue, auto, latest_wins, allow_refused, console)
    except (DataError, ImageError, OSError) as error:
        return refuse(error, json, out=out)
    if json:
        print(dumps(document))
    return 0


def _apply(
    files: Sequence[Path],
    data: Path | None,
    out: Path | None,
    queue_file: Path | None,
    auto: float | None,
    latest_wins: bool,
    allow_refused: bool,
    console: Console,
) -> dict[str, Any]:
    if (queue_file is None) != (auto is None):
        raise DataError("Give --queue and --auto together: suggestions, and how sure is sure enough.")
    if auto is not None and not 0 <= auto <= 1:
        raise DataError(f"--auto is {auto:g}; give a probability of 0 to 1.")
    if not files and queue_file is None:
        raise DataError("Give files of decisions, or --queue and --auto.")
    queue = read_queue(queue_file) if queue_file is not None else None
    data = data or (Path(queue.data) if queue is not None else None)
    if data is None or out is None:
        raise DataError("Give the data set with --data and a new folder with --out.")
    _require_new(out, data)
    given = read_fixes(files)
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Console(stderr=True, quiet=console.quiet).status("Reading the data set"):
        splits = {split: require_sound(reading) for split, reading in read_splits(data).items()}
        parent = Parent(data, splits, {split: index.image_digests() for split, index in splits.items()})
    chosen = decided(given, latest_wins)
    if queue is not None and auto is not None:
        chosen += unreviewed(queue, auto, given, when, _digests_of_queue(queue, parent))
    edits, outcomes = resolve(chosen, parent)
    refused = [outcome for outcome in outcomes if outcome.state == "refused"]
    if refused and not allow_refused:
        raise DataError(
            f"{len(refused)} of {len(outcomes)} decisions are refused, so nothing is written. Look at these again, "
            f"drop their lines, or leave them out with --allow_refused.{_listed(refused)}"
        )
    with Console(stderr=True, quiet=console.quiet).status("Writing the new version"):
        version, document = _write(parent, edits, outcomes, out, when, files, queue_file, auto)
    _report(outcomes, version, out, console)
    return document


def resolve(fixes: Sequence[Fix], parent: Parent) -> tuple[Edits, list[Outcome]]:
    """What decisions come to in a data set: its changes, and what became of each decision.

    Splits may share an image with the file of its labels; what is decided in one of them is then changed in all.

    Args:
        fixes: Those that stand, in order.
        parent: The data set.
    """
    places = _places(parent)
    earlier = applied_before(parent.data)
    of_labels: dict[tuple[Image, ...], list[Fix]] = defaultdict(list)  # by the images that have them
    outcomes = []
    for fix in fixes:
        image, reason = _find(fix, places, parent)
        reason = reason or (_objection(fix, parent.splits[image.split], image.place) if image else "")
        if image is None or reason:
            outcomes.append(Outcome(fix, "refused", reason))
        else:
            file = _file_of_labels(image, parent)
            alike = places[fix.image_sha256]
            of_labels[tuple(other for other in alike if _file_of_labels(other, parent) == file)].append(fix)
    edits: dict[str, dict[int, list[Edit]]] = defaultdict(dict)
    for images, found in of_labels.items():
        for image in images:
            labels = labels_of_image(parent.splits[image.split], image.place)
            edits[image.split][image.place], results = mend(labels, found, earlier)
        outcomes += results
    return edits, outcomes


def _require_new(out: Path, data: Path) -> None:
    if out.exists():
        raise DataError(f"{out}: exists already, and nothing is ever overwritten. Name a new folder.")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise DataError(f"{out}: lies in {data}, which would then hold two data sets. Name a folder beside it.")


def _digests_of_queue(queue: Queue, parent: Parent) -> dict[str, str]:
    """SHA-256 of the images of a queue's split, by name.

    Raises:
        DataError: The queue is of other labels than the data set has.
    """
    index = parent.splits.get(queue.split)
    if index is None or index.annotations_hash() != queue.annotations_hash:
        raise DataError(
            f"{parent.data}: its split {queue.split} is not as it was when the queue was made, so nothing can be taken "
            "without review. Write the queue anew with `detframe label-errors`."
        )
    digests = [digest.hex() for digest in parent.digests[queue.split]]
    return dict(zip(index.file_names, digests, strict=True))


def _places(parent: Parent) -> dict[str, list[Image]]:
    """Where the images are, by the SHA-256 of their content."""
    places: dict[str, list[Image]] = defaultdict(list)
    for split, digests in parent.digests.items():
        for place, digest in enumerate(digests):
            places[digest.hex()].append(Image(split, place))
    return places


def _find(fix: Fix, places: Mapping[str, list[Image]], parent: Parent) -> tuple[Image | None, str]:
    """The image that a decision is about; or why there is none."""
    found = places.get(fix.image_sha256, [])
    named = [image for image in found if parent.splits[image.split].file_names[image.place] == fix.file_name]
    chosen = [image for image in named if image.split == fix.split] or named or found
    if len(chosen) == 1 or (chosen and len({_file_of_labels(image, parent) for image in chosen}) == 1):
        return chosen[0], ""
    if chosen:
        names = ", ".join(f"{parent.splits[i.split].file_names[i.place]} in {i.split}" for i in chosen)
        return None, f"its image is there {len(chosen)} times: {names}"
    known = any(fix.file_name in index.file_names for index in parent.splits.values())
    return None, "the image has another content now" if known else "no image has the content that it was decided on"


def _file_of_labels(image: Image, parent: Parent) -> tuple[Path, int | str]:
    """What tells the labels of two images apart: an XML or text file may be in two splits, and is then one."""
    index = parent.splits[image.split]
    return index.annotation_file(image.place).resolve(), "" if index.annotation_files else image.place


def _objection(fix: Fix, index: AnnotationIndex, image: int) -> str:
    """Why no label of an image can be what a decision makes of it, "" where it can."""
    if fix.after is None or same_label(fix.before, fix.after):
        return ""
    x1, y1, x2, y2 = fix.after.box
    if fix.after.class_name not in index.class_names:
        return f"the data set has no class {fix.after.class_name!r}"
    if not (x2 > x1 and y2 > y1):
        return f"its new box {list(fix.after.box)} has no area"
    if index.source.suffix.lower() not in (".yaml", ".yml"):
        return ""
    if fix.after.ignore and not (fix.before is not None and fix.before.ignore):
        return "YOLO has no ignore boxes; `detframe convert` the data set to COCO or Pascal VOC first"
    height, width = size_of(index, image)
    if not fix.after.ignore and not sayable_in_line(fix.after, width, height):
        return f"its new box {list(fix.after.box)} leaves the image of {width} x {height}, which YOLO cannot say"
    return ""


def _write(
    parent: Parent,
    edits: Edits,
    outcomes: Sequence[Outcome],
    out: Path,
    when: str,
    files: Sequence[Path],
    queue: Path | None,
    auto: float | None,
) -> tuple[Version, dict[str, Any]]:
    """Write the version, whole or not at all, and return what its lineage says."""
    with unfinished(out) as folder:
        folder.mkdir()
        version = Version(folder)
        source = next(iter(parent.splits.values())).source
        if source.is_dir():
            write_voc_version(parent.splits, edits, source, version)
        elif source.suffix.lower() in (".yaml", ".yml"):
            write_yolo_version(parent.splits, edits, version)
        else:
            write_coco_version(parent.splits, edits, parent.data, version)
        followed = [outcome.fix for outcome in outcomes if outcome.state != "refused"]
        append_fixes(sorted(followed, key=lambda fix: fix.when), folder / FIXES_FILE)
        written = {split: require_sound(reading) for split, reading in read_splits(folder).items()}
        _prove(parent.splits, edits, written, folder)
        document = lineage_of(parent.data, parent.splits, written, parent.digests, outcomes, when)
        document["decisions"] = [_described(file) for file in files]
        document["queue"] = None if queue is None else {**_described(queue), "auto": auto}
        write_lineage(document, folder)
    return version, document


def _described(file: Path) -> dict[str, Any]:
    return {"file": str(file), "sha256": file_digest(file).hex()}


def _prove(
    before: Mapping[str, AnnotationIndex], edits: Edits, after: Mapping[str, AnnotationIndex], folder: Path
) -> None:
    """Compare what was written with what it should be.

    Raises:
        DataError: They differ.
    """
    if {split: index.categories for split, index in before.items()} != {s: i.categories for s, i in after.items()}:
        raise DataError("The new version has other splits or classes than the old, so it is not kept. Report this.")
    for split, old in before.items():
        new = after[split]
        places = {name: place for place, name in enumerate(new.file_names)}
        known = set(old.file_names)
        foreign = [name for name in places if name not in known and not _is_within(new.image_root / name, folder)]
        if foreign or not _is_within(new.image_root, folder):
            raise DataError(
                f"{old.source}: names images of {split} by absolute paths, so that a version would use the old files. "
                "Bring all of it into one folder with `detframe convert`."
            )
        for image, name in enumerate(old.file_names):
            wanted = edited_labels(labels_of_image(old, image), edits.get(split, {}).get(image, []))
            got = labels_of_image(new, places[name]) if name in places else None
            if got is None or not same_labels(got, wanted):
                raise DataError(f"{name} in {split}: reads back otherwise; nothing is kept. Report this.")


def _is_within(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def edited_labels(labels: Sequence[Label], edits: Sequence[Edit]) -> list[Label]:
    """Labels of an image with changes made."""
    changed = {edit.place: edit.after for edit in edits if edit.place >= 0}
    kept = [changed.get(place, label) for place, label in enumerate(labels)]
    added = [edit.after for edit in edits if edit.place < 0]
    return [label for label in [*kept, *added] if label is not None]


def _listed(outcomes: Sequence[Outcome]) -> str:
    return below(
        [f"{o.fix.file_name} ({o.fix.split}), {o.fix.kind} by {o.fix.who}: {o.reason}" for o in outcomes], _NAMED
    )


def _report(outcomes: Sequence[Outcome], version: Version, out: Path, console: Console) -> None:
    states = [state for state in STATES if any(outcome.state == state for outcome in outcomes)]
    if states:
        table = Table("decisions", *map(_WORDS.__getitem__, states), title_justify="left")
        for kind in dict.fromkeys(outcome.fix.kind for outcome in outcomes):
            found = [outcome.state for outcome in outcomes if outcome.fix.kind == kind]
            table.add_row(kind, *(str(found.count(state)) for state in states))
        console.print(table)
    refused = [outcome for outcome in outcomes if outcome.state == "refused"]
    if refused:
        console.print(f"Refused and left out ({len(refused)}):{_listed(refused)}")
    alone = sum(outcome.state == "applied" and outcome.fix.who == "detframe" for outcome in outcomes)
    if alone:
        console.print(f"{alone} were applied without review; lineage.json marks them")
    if version.outlines_dropped:
        console.print(f"{version.outlines_dropped} outlines were dropped with the boxes that were moved")
    for note in version.notes:
        console.print(note)
    links = f"{version.linked} linked"
    links += f", {version.symlinked} linked symbolically" if version.symlinked else ""
    links += f", {version.copied} copied" if version.copied else ""
    console.print(f"Written to {out}; read back and compared; images and other files: {links}")
