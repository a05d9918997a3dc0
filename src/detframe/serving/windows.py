"""What a worker keeps of what it saw: windows of counts for `detframe monitor`, and nothing of any image."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detframe.export.runtime import Answer, Metadata
from detframe.monitoring.window import (
    WindowError,
    empty_window,
    from_json,
    limits,
    merged,
    scale_of,
    values_of,
    window_of,
    write_window,
)

_log = logging.getLogger(__name__)


class WindowWriter:
    """Counts images and answers, and writes a window each time so many have come."""

    def __init__(self, folder: Path, images: int, metadata: Metadata) -> None:
        """Begin at nothing.

        Args:
            folder: Gets a file for each window, whose name tells the time and the process.
            images: Of a window.
            metadata: Of the artefact, with its profile.

        Raises:
            WindowError: There is no profile, or it is none.
        """
        if metadata.profile is None:
            raise WindowError(
                "The artefact carries no profile to compare windows with. Export it anew, with validation data."
            )
        self._folder = folder
        self._images = images
        self._names = metadata.class_names
        self._scale = scale_of(from_json(metadata.profile, "The artefact's profile"))
        self._thresholds = limits(metadata.thresholds, metadata.class_names)
        self._values: list[NDArray[np.float64]] = []
        self._empty = empty_window(self._names)._replace(artefact=metadata.of_windows())
        self._unwritten = self._empty

    def add(self, image: NDArray[np.uint8], answer: Answer) -> None:
        """Count an image ``[3, H, W]`` and the answer to it alone; it never fails for want of room to write."""
        self._values.append(values_of(image, answer, self._thresholds))
        if len(self._values) >= self._images:
            self.flush()

    def flush(self) -> None:
        """Write what there is, as when the server ends; what cannot be written goes into the next window."""
        if self._values:  # added up, so that what waits for room takes no more memory than one window
            window = window_of(self._names, np.array(self._values), self._scale)
            self._unwritten = merged([self._unwritten, window])
            self._values.clear()
        if not self._unwritten.images:
            return
        path = self._folder / f"{time.time_ns()}-{os.getpid()}.window.json"
        try:
            write_window(self._unwritten, path)
        except OSError as error:  # detections are not to wait for a disk
            _log.error("%s: cannot be written (%s); its counts are kept for the next window", path, error.strerror)
            return
        self._unwritten = self._empty
