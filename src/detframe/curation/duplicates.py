"""The verb ``duplicates``: images that are one picture, within and across splits."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from detframe.data.annotations import AnnotationIndex, DataError
from detframe.data.fingerprints import Fingerprints, fingerprints
from detframe.data.near_duplicates import Pairs, groups_of, near_duplicates
from detframe.data.sources import read_splits
from detframe.refusals import refuse

_NAMED, _DRAWN = 10, 20
_TILE, _LINE = 200, 18  # pixels


class Member(NamedTuple):
    """One image of a group."""

    split: str
    image_id: int
    file_name: str
    labels: list[str]  # the classes of its boxes, sorted


class Group(NamedTuple):
    """Images that are one picture."""

    members: list[Member]
    positions: list[int]  # of the members among all images
    difference: float  # largest of its pairs: 0 for files of one content
    across: bool  # over several splits
    labels_agree: bool  # the same classes, as often


def duplicates(data: Path, out: Path | None = None, workers: int = 0, json: bool = False) -> int:
    """Find images that are one picture: re-encoded, cut by up to a tenth, brighter or darker, mirrored or turned.

    A picture that is in training and in the test split makes figures too good; one that has different labels in two
    places has a wrong one. `detframe split` deals a data set out anew.

    Written to OUT, where it is given: duplicates.json, all groups, and duplicates.jpg, the first of them side by side.

    Exit code: 0 when no picture is in two splits; 1 when one is; 2 when DATA cannot be read.

    Args:
        data: As `detframe check` takes it.
        out: Folder to write.
        workers: Threads that read images; 0 takes one for each core.
        json: Print the groups as JSON and nothing else.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        indices = {name: reading.index for name, reading in read_splits(data).items()}
        paths = [index.path(i) for index in indices.values() for i in range(len(index))]
        found = fingerprints(paths, workers, show_progress=not json)
        if len(found.problems) == len(paths):
            raise DataError(f"{data}: none of its {len(paths)} images can be read, such as {paths[0]}.")
        pairs = near_duplicates(found, show_progress=not json)
        groups = grouped(indices, pairs)
        document = {
            "data": str(data),
            "images": len(paths),
            "unreadable": {str(paths[position]): problem for position, problem in found.problems.items()},
            "groups": [_as_json(group) for group in groups],
        }
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "duplicates.json").write_text(dumps(document, indent=1), encoding="utf-8")
            if groups:
                sheet(groups[:_DRAWN], found).save(out / "duplicates.jpg", quality=85)
    except (DataError, OSError) as error:
        return refuse(error, json)
    across = [group for group in groups if group.across]
    if json:
        print(dumps(document))
        return 1 if across else 0
    for group in groups[:_NAMED]:
        names = ", ".join(f"{member.split}/{member.file_name}" for member in group.members)
        kind = "one content" if not group.difference else "nearly the same"
        console.print(f"{kind}{'' if group.labels_agree else ', labelled differently'}: {names}")
    if len(groups) > _NAMED:
        console.print(f"and {len(groups) - _NAMED} more groups; --out DIR writes all")
    for position, problem in list(found.problems.items())[:_NAMED]:
        console.print(f"{paths[position]}: {problem}")
    different = sum(not group.labels_agree for group in groups)
    console.print(
        f"{len(paths)} images, {len(found.problems)} of them unreadable: {len(groups)} pictures are there more than "
        f"once, {len(across)} of them in several splits, {different} with other labels"
    )
    return 1 if across else 0


def grouped(indices: dict[str, AnnotationIndex], pairs: Pairs) -> list[Group]:
    """Groups of two images and more, those across splits first.

    Args:
        indices: Splits, whose images were numbered one after the other.
        pairs: Of these numbers.
    """
    members = [
        Member(
            split,
            int(index.image_ids[i]),
            index.file_names[i],
            sorted(index.class_names[label] for label in index.labels[index.rows(i)]),
        )
        for split, index in indices.items()
        for i in range(len(index))
    ]
    group_of = np.array(groups_of(pairs.first, pairs.second, len(members)), dtype=np.int64)
    result = []
    for number in np.unique(group_of[pairs.first]).tolist():
        positions = np.flatnonzero(group_of == number).tolist()
        own = [members[position] for position in positions]
        result.append(
            Group(
                members=own,
                positions=positions,
                difference=float(np.max(pairs.difference[group_of[pairs.first] == number])),
                across=len({member.split for member in own}) > 1,
                labels_agree=all(member.labels == own[0].labels for member in own),
            )
        )
    return sorted(result, key=lambda group: (not group.across, group.labels_agree, group.positions))


def sheet(groups: list[Group], found: Fingerprints) -> Image.Image:
    """A row of pictures for each group."""
    columns = min(max(len(group.positions) for group in groups), 5)
    result = Image.new("RGB", (columns * _TILE, len(groups) * (_TILE + _LINE)), "#222222")
    pen, font = ImageDraw.Draw(result), ImageFont.load_default(11)
    for row, group in enumerate(groups):
        for column, (position, member) in enumerate(zip(group.positions[:columns], group.members, strict=False)):
            place = (column * _TILE, row * (_TILE + _LINE))
            picture: NDArray[np.uint8] = found.pictures[position]
            result.paste(Image.fromarray(picture).resize((_TILE - 2, _TILE - 2)), (place[0], place[1] + _LINE))
            pen.text((place[0] + 3, place[1] + 3), f"{member.split}: {Path(member.file_name).name}", "#FFFFFF", font)
    return result


def _as_json(group: Group) -> dict[str, Any]:
    return {
        "images": [member._asdict() for member in group.members],
        "largest_difference": round(group.difference, 4),
        "across_splits": group.across,
        "labels_agree": group.labels_agree,
    }
