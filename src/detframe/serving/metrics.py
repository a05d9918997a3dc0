"""Counts of what a server does, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """How often a value was at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin at nothing; bounds ascend."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def lines(self, name: str) -> list[str]:
        """As Prometheus reads it: counts add up from bound to bound."""
        lines, below = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self._total}", f"{name}_count {below}"]


class Metrics:
    """What was asked and answered since the start."""

    def __init__(self, artefact: Mapping[str, str], most_waiting: int) -> None:
        """Begin at nothing.

        Args:
            artefact: What tells it from others, by name.
            most_waiting: Images from which on a request is turned away.
        """
        self._artefact = artefact
        self._most_waiting = most_waiting
        self._requests: Counter[int] = Counter()
        self._seconds = Histogram(_SECONDS)
        self._batches = Histogram(_IMAGES)
        self._images = 0
        self.waiting = 0

    def answered(self, status: int, seconds: float) -> None:
        """Count a request to /predict and how long its answer took; only good ones count for the time."""
        self._requests[status] += 1
        if status == 200:
            self._seconds.add(seconds)

    def predicted(self, images: int, batch: int) -> None:
        """Count the images of a request, and how many were in one call of the artefact with its first."""
        self._images += images
        self._batches.add(batch)

    def text(self) -> str:
        """All of it."""
        facts = ",".join(f'{name}="{escaped(value)}"' for name, value in self._artefact.items())
        return "\n".join(
            [
                *_headed("detframe_artefact_info", "gauge", "The artefact that answers."),
                f"detframe_artefact_info{{{facts}}} 1",
                *_headed("detframe_requests_total", "counter", "Requests to /predict by the status of their answer."),
                *(f'detframe_requests_total{{status="{key}"}} {n}' for key, n in sorted(self._requests.items())),
                *_headed("detframe_images_total", "counter", "Images that were answered with detections."),
                f"detframe_images_total {self._images}",
                *_headed("detframe_waiting_images", "gauge", "Images that were taken and are not answered yet."),
                f"detframe_waiting_images {self.waiting}",
                *_headed("detframe_waiting_images_limit", "gauge", "From here on requests are answered with 429."),
                f"detframe_waiting_images_limit {self._most_waiting}",
                *_headed("detframe_request_seconds", "histogram", "From the request to its good answer."),
                *self._seconds.lines("detframe_request_seconds"),
                *_headed("detframe_batch_images", "histogram", "Images in the call that a request was part of."),
                *self._batches.lines("detframe_batch_images"),
                "",
            ]
        )


def _headed(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def escaped(value: str) -> str:
    """A text as it stands between quotes, for Prometheus and for protobuf alike."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
