"""What an artefact says of the images of several requests, as JSON for each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from detframe.data.images import ImageError, read_image
from detframe.export.runtime import Answer, Artefact
from detframe.serving.limits import Refusal
from detframe.serving.uploads import Job

_log = logging.getLogger(__name__)


class Predicted(NamedTuple):
    """What a job is answered with."""

    images: list[dict[str, Any]]
    batch: int


def json_response(content: Any, status: int) -> Response:  # noqa: ANN401 - what JSON holds
    """An answer of JSON."""
    return Response(json.dumps(content), status, media_type="application/json")


def answer_jobs(
    artefact: Artefact,
    jobs: Sequence[Job],
    batch: int,
    observe: Callable[[NDArray[np.uint8], Answer], object] = lambda image, answer: None,
) -> list[Predicted | Refusal]:
    """Decode and detect, images of one size together.

    Args:
        artefact: Which detects.
        jobs: Requests.
        batch: The most images in one call.
        observe: Told of each image ``[3, H, W]`` and its answer.

    Returns:
        For each job its detections, or what is wrong with it.
    """
    refused: dict[int, Refusal] = {}
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by (height, width): (job, image)
    pixels: dict[tuple[int, int], NDArray[np.uint8]] = {}
    for number, job in enumerate(jobs):
        try:
            decoded = [np.asarray(read_image(image)) for image in job.images]  # [3, H, W] each
        except ImageError as error:
            refused[number] = Refusal(400, f"{error}.")
            continue
        for place, image in enumerate(decoded):
            pixels[number, place] = image
            places.setdefault((image.shape[1], image.shape[2]), []).append((number, place))
    found: dict[tuple[int, int], dict[str, Any]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for alike in places.values():
        for start in range(0, len(alike), batch):
            group = alike[start : start + batch]
            for key, answer in zip(group, _answers(artefact, [pixels[key] for key in group]), strict=True):
                sizes[key] = len(group)
                if isinstance(answer, Refusal):
                    refused[key[0]] = answer
                else:
                    observe(pixels[key], answer)
                    height, width = pixels[key].shape[1:]
                    found[key] = as_json(answer, artefact.metadata.class_names, jobs[key[0]].all, height, width)
    return [
        refused[number]
        if number in refused
        else Predicted([found[number, place] for place in range(len(job.images))], sizes[number, 0])
        for number, job in enumerate(jobs)
    ]


def _answers(artefact: Artefact, images: list[NDArray[np.uint8]]) -> list[Answer | Refusal]:
    """What the artefact says of images of one size, each with a batch axis of 1; one by one where it fails at all."""
    try:
        answer = artefact.run(np.ascontiguousarray(np.stack(images)))
    except Exception as error:  # whatever a runtime raises, the next request is to be answered
        if len(images) > 1:
            return [answer for image in images for answer in _answers(artefact, [image])]
        _log.exception("The artefact failed on an image of shape %s", images[0].shape)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return [Refusal(500, f"The artefact failed on this image ({reason[:200]}); try it with `detframe predict`.")]
    return [_row(answer, row) for row in range(len(images))]


def _row(answer: Answer, row: int) -> Answer:
    return Answer._make(column[row : row + 1] for column in answer)


def as_json(answer: Answer, class_names: Sequence[str], everything: bool, height: int, width: int) -> dict[str, Any]:
    """What is answered for one image.

    Args:
        answer: With a batch axis of 1.
        class_names: By label.
        everything: Every valid detection, and not only the confident ones.
        height: Of the image, pixels.
        width: Of the image, pixels.
    """
    shown = np.flatnonzero((answer.valid if everything else answer.confident)[0])
    return {
        "detections": [
            {
                "box": [_number(side) for side in answer.boxes[0, slot]],
                "score": _number(answer.scores[0, slot]),
                "label": int(answer.labels[0, slot]),
                "class_name": class_names[answer.labels[0, slot]],
            }
            for slot in shown
        ],
        "width": width,
        "height": height,
    }


def _number(value: np.float32) -> float:
    """The shortest number that is this one in 32 bits: 12.3, not 12.300000190734863."""
    return float(str(value))
