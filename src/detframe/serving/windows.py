"""What a worker keeps of what it saw: windows of counts for `detframe monitor`, and nothing of any image."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detframe.export.runtime import Answer, Metadata
from detframe.monitoring.window import from_json, limits, scale_of, values_of, window_of, write_window


class WindowWriter:
    """Counts images and answers, and writes a window each time so many have come."""

    def __init__(self, folder: Path, images: int, metadata: Metadata) -> None:
        """Begin at nothing.

        Args:
            folder: Gets a file for each window, whose name tells the time and the process.
            images: Of a window.
            metadata: Of the artefact, with its profile.

        Raises:
            WindowError: The profile is none.
        """
        self._folder = folder
        self._images = images
        self._names = metadata.class_names
        self._artefact = metadata.of_windows()
        self._scale = scale_of(from_json(metadata.profile, "The artefact's profile"))
        self._thresholds = limits(metadata.thresholds, metadata.class_names)
        self._values: list[NDArray[np.float64]] = []

    def add(self, image: NDArray[np.uint8], answer: Answer) -> None:
        """Count an image ``[3, H, W]`` and the answer to it alone."""
        self._values.append(values_of(image, answer, self._thresholds))
        if len(self._values) >= self._images:
            self.flush()

    def flush(self) -> None:
        """Write what there is, as when the server ends."""
        if not self._values:
            return
        window = window_of(self._names, np.array(self._values), self._scale)._replace(artefact=self._artefact)
        self._values.clear()
        write_window(window, self._folder / f"{time.time_ns()}-{os.getpid()}.window.json")
