"""Pictures of single mistakes and of the worst images, with what was found and what is there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from detframe.analysis.diagnosis import Diagnosis
from detframe.analysis.evaluation import Evaluation
from detframe.analysis.evidence import worst_images
from detframe.analysis.gallery import Example
from detframe.analysis.mistakes import Mistake, best_score
from detframe.analysis.prediction_table import box_of_row
from detframe.analysis.verdicts import Judgement, Verdicts
from detframe.data.images import ImageError, read_image
from detframe.drawing import Mark, draw_marks, shrunk
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED
from detframe.metrics.errors import ErrorTable, ErrorType

RIGHT, WRONG, MISSED, FOUND = (0, 114, 178), (213, 94, 0), (240, 228, 66), (255, 255, 255)
"""Okabe and Ito's blue, vermilion and yellow, which differ in lightness too, and white."""

LEGEND = (
    "Solid lines were detected, blue rightly, vermilion wrongly; dashed ones are labelled, white where found, yellow "
    "where missed."
)

BACKGROUND = "background"
_CROP, _CROP_SIDE = 2.5, 72.0  # of the box's longer side, and the least in pixels
_NEAR = 0.1  # IoU with the box that a crop is about
_THUMBNAIL, _WHOLE = 240, 640  # pixels that a crop is enlarged to, and the longest side of a whole image
_NAMES = {
    ErrorType.CLASSIFICATION: "wrong class",
    ErrorType.LOCALISATION: "badly placed",
    ErrorType.BOTH: "wrong class, badly placed",
    ErrorType.DUPLICATE: "found twice",
    ErrorType.BACKGROUND: "nothing there",
    ErrorType.MISSED: "missed",
}


def examples_of_mistakes(
    evaluation: Evaluation, diagnosis: Diagnosis, chosen: Sequence[Mistake], verdicts: Verdicts | None
) -> Iterator[Example]:
    """A crop for each mistake, with everything else that is in it; an image that cannot be read is left out.

    Where there are verdicts, the nearest objects of the training split stand beside it.
    """
    names = [*evaluation.class_names, BACKGROUND]
    by_image: dict[int, list[int]] = defaultdict(list)
    for i, mistake in enumerate(chosen):
        by_image[mistake.image].append(i)
    made: dict[int, Example] = {}
    for image, places in by_image.items():
        pixels = pixels_of(evaluation, image)
        if pixels is None:
            continue
        for i in places:
            example = _example(evaluation, diagnosis, chosen[i], pixels, names)
            made[i] = example if verdicts is None else _with_verdict(example, verdicts, chosen[i])
    yield from (made[i] for i in sorted(made))


def examples_of_images(evaluation: Evaluation, diagnosis: Diagnosis, most: int) -> Iterator[Example]:
    """The images that are dearest to correct, whole."""
    for worst in worst_images(diagnosis.evidence, most):
        pixels = pixels_of(evaluation, worst.place)
        if pixels is None:
            continue
        small, scale = shrunk(pixels, _WHOLE)
        errors = diagnosis.evidence.operating.errors
        yield Example(
            draw_outcomes(errors, evaluation.class_names, worst.place, small, torch.zeros(2), scale),
            evaluation.file_names[worst.place],
            f"cost {worst.cost:.2f}: {worst.missed} of {worst.objects} objects missed, {worst.false} detections wrong",
            {"image": str(int(evaluation.image_ids[worst.place]))},
        )


def pixels_of(evaluation: Evaluation, image: int) -> Tensor | None:
    """An image ``[3, H, W]`` uint8; None where it is not at hand or cannot be read."""
    if evaluation.paths is None:
        return None
    try:
        return read_image(evaluation.paths[image])
    except ImageError:
        return None


def _example(
    evaluation: Evaluation, diagnosis: Diagnosis, mistake: Mistake, pixels: Tensor, names: Sequence[str]
) -> Example:
    errors = diagnosis.evidence.operating.errors
    box = errors.truths.boxes[mistake.truth] if mistake.detection < 0 else errors.detections.boxes[mistake.detection]
    drawn = crop_around(errors, evaluation.class_names, mistake.image, pixels, box)
    truth, detected = names[mistake.cell[0]], names[mistake.cell[1]]
    return Example(
        drawn,
        _title(evaluation, diagnosis, mistake),
        evaluation.file_names[mistake.image],
        {"kind": _NAMES[mistake.kind], "truth": truth, "detected": detected},
    )


def _with_verdict(example: Example, verdicts: Verdicts, mistake: Mistake) -> Example:
    judgement = verdicts.judgements.get(mistake)
    if judgement is None:
        return example._replace(properties={**example.properties, "verdict": "-"})
    crops = list(_nearest(verdicts, judgement)) if verdicts.training_images is not None else []
    return example._replace(
        picture=_beside(example.picture, crops),
        detail=f"{example.detail}. {evidence(judgement)}",
        properties={**example.properties, "verdict": judgement.verdict.value},
    )


def evidence(judgement: Judgement) -> str:
    """The verdict on a mistake and what it rests on, in a sentence."""
    said = f"{judgement.verdict.value[0].upper()}{judgement.verdict.value[1:]} ({judgement.confidence:.2f})"
    alike = f"{judgement.alike} objects like it in training (p {judgement.typicality:.3f})"
    if math.isnan(judgement.right):
        return f"{said}: {alike}."
    right, agreement = f"{judgement.right:.0%}", f"{judgement.agreement:.0%}"
    return f"{said}: {alike}; of detections like it {right} were right, of objects {agreement} are of its class."


def _nearest(verdicts: Verdicts, judgement: Judgement) -> Iterator[Image.Image]:
    """Crops of the nearest training objects that can be read."""
    table = verdicts.training.table
    for row in judgement.nearest:
        assert verdicts.training_images is not None
        try:
            pixels = read_image(verdicts.training_images / table["file_name"][row].as_py())
        except ImageError:
            continue
        box = box_of_row(table, row)
        x1, y1, x2, y2 = _window(box, pixels.shape[1], pixels.shape[2])
        yield draw_marks(pixels[:, y1:y2, x1:x2], [], [Mark(box - torch.tensor([x1, y1, x1, y1]), "", FOUND)])


def _beside(picture: Image.Image, others: Sequence[Image.Image]) -> Image.Image:
    """A picture with others in a column to its right, each of a third of its height."""
    if not others:
        return picture
    side, gap = picture.height // 3, 4
    sheet = Image.new("RGB", (picture.width + gap + side, picture.height), (250, 250, 248))
    sheet.paste(picture)
    for i, other in enumerate(others):
        sheet.paste(other.resize((side - gap, side - gap)), (picture.width + gap, i * side))
    return sheet


def _title(evaluation: Evaluation, diagnosis: Diagnosis, mistake: Mistake) -> str:
    """What happened, in a few words."""
    names, errors = evaluation.class_names, diagnosis.evidence.operating.errors
    if mistake.detection < 0:
        label, score = int(errors.truths.labels[mistake.truth]), best_score(diagnosis, mistake.truth)
        below = f": its score {score:.2f} is below {diagnosis.evidence.thresholds[label]:.2f}" if score else ""
        return f"{names[label]} missed{below}"
    label = int(errors.detections.labels[mistake.detection])
    said = f"{names[label]} {mistake.score:.2f}"
    iou = float(errors.iou[mistake.detection])
    about = names[int(errors.truths.labels[mistake.truth])] if mistake.truth >= 0 else ""
    return {
        ErrorType.CLASSIFICATION: f"{said}, labelled {about}",
        ErrorType.LOCALISATION: f"{said}, IoU {iou:.2f}",
        ErrorType.BOTH: f"{said}, labelled {about}, IoU {iou:.2f}",
        ErrorType.DUPLICATE: f"{said}, found twice",
        ErrorType.BACKGROUND: f"{said}, nothing labelled",
    }[mistake.kind]


def _window(box: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """A square around the box, moved into the image."""
    x1, y1, x2, y2 = box.tolist()
    side = max(_CROP * max(x2 - x1, y2 - y1), _CROP_SIDE)
    wide, high = round(min(side, width)), round(min(side, height))
    left = round(min(max((x1 + x2 - wide) / 2, 0), width - wide))
    top = round(min(max((y1 + y2 - high) / 2, 0), height - high))
    return left, top, left + wide, top + high


def crop_around(errors: ErrorTable, names: Sequence[str], image: int, pixels: Tensor, box: Tensor) -> Image.Image:
    """What was found and what is there around a box ``[4]`` of an image, of which the pixels are ``[3, H, W]``."""
    x1, y1, x2, y2 = _window(box, pixels.shape[1], pixels.shape[2])
    return draw_outcomes(errors, names, image, pixels[:, y1:y2, x1:x2], torch.tensor([x1, y1]), 1.0, box)


def draw_outcomes(
    errors: ErrorTable,
    names: Sequence[str],
    image: int,
    pixels: Tensor,
    corner: Tensor,
    scale: float,
    about: Tensor | None = None,
) -> Image.Image:
    """Detections that are kept and truths of an image, on a part of it.

    Args:
        errors: What is right, wrong, found and missed.
        names: Of the classes.
        image: Place of the image.
        pixels: ``[3, H, W]`` uint8, the part.
        corner: ``[2]`` x, y of its left top corner in the image.
        scale: Its pixels for one of the image's.
        about: ``[4]``, a box of the image: what overlaps it is drawn, with classes; None draws all, without.
    """
    tags = about is not None
    size = torch.tensor([pixels.shape[2], pixels.shape[1]])

    def placed(box: Tensor) -> Tensor | None:
        if about is not None and float(box_iou(box[None], about[None])) < _NEAR:
            return None
        moved = (box - corner.repeat(2)) * scale
        inside = torch.cat((moved[:2].clamp(min=0), torch.minimum(moved[2:], size)))
        return inside if bool((inside[2:] > inside[:2]).all()) else None

    solid, dashed, ignored = [], [], []
    rows = (errors.detections.images == image).nonzero().flatten()
    for row in rows[errors.detections.scores[rows].argsort()].tolist():
        box, outcome = placed(errors.detections.boxes[row]), int(errors.outcome[row])
        if box is None or outcome == IGNORED:
            continue
        text = f"{names[int(errors.detections.labels[row])]} {float(errors.detections.scores[row]):.2f}" if tags else ""
        solid.append(Mark(box, text, WRONG if outcome == FALSE_POSITIVE else RIGHT))
    for row in (errors.truths.images == image).nonzero().flatten().tolist():
        box = placed(errors.truths.boxes[row])
        if box is None:
            continue
        region = bool(errors.truths.ignore[row])
        missed = not region and int(errors.found_by[row]) < 0
        name = names[int(errors.truths.labels[row])] if tags else ""
        dashed.append(Mark(box, name, MISSED if missed else FOUND))
        ignored.append(region)
    return draw_marks(pixels, solid, dashed, torch.tensor(ignored, dtype=torch.bool), _THUMBNAIL if tags else 0)
