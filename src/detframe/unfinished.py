"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file or a folder at; it gets the name when all went well, and goes otherwise.

    Args:
        path: A file that is there is replaced; its folder is made where needed.
    """
    beside = path.with_name(f"{path.name}.unfinished")
    _remove(beside)  # of a run that was killed
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        _remove(beside)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
