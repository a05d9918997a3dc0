"""Files of a new version: images are linked, what is written is copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from detframe.curation.mending import Edit
from detframe.data.annotations import DataError
from detframe.data.sources import LINEAGE_FILE

Edits = Mapping[str, Mapping[int, list[Edit]]]
"""Changes by split and position of the image; of those to one label there is one."""

FIXES_FILE = "fixes.jsonl"
"""In the folder of a version: the decisions that made it."""


@dataclass
class Version:
    """A folder that is being filled, and what there is to say about it."""

    root: Path
    linked: int = 0
    symlinked: int = 0
    copied: int = 0  # images for which there is neither kind of link
    outlines_dropped: int = 0  # of boxes that were moved
    notes: list[str] = field(default_factory=list)
    _done: set[Path] = field(default_factory=set)

    def link(self, source: Path, name: Path) -> None:
        """Bring a file that nobody changes to its place: a hard link, else a symbolic one, else a copy."""
        target = self._target(name)
        if target is None:
            return
        source = source.resolve()
        for way in (os.link, os.symlink, shutil.copy2):
            try:
                way(source, target)
            except OSError:  # another file system, or one without links
                if way is shutil.copy2:
                    raise
                continue
            self.linked += way is os.link
            self.symlinked += way is os.symlink
            self.copied += way is shutil.copy2
            return

    def copy(self, source: Path, name: Path) -> None:
        """Copy a file, byte for byte, unless it was written already."""
        target = self._target(name)
        if target is not None:
            shutil.copyfile(source, target)

    def write(self, name: Path, content: bytes) -> None:
        """Write a file of the version, unless it was written already: splits may share it."""
        target = self._target(name)
        if target is not None:
            target.write_bytes(content)

    def copy_tree(self, source: Path, name: Path) -> None:
        """Copy the files of a folder that were not written already."""
        for file in files_below(source):
            self.copy(file, name / file.relative_to(source))

    def bring_others(self, root: Path, folders: Iterable[str]) -> None:
        """Link the files that lie in the old folder itself, and note those of its folders that stay behind."""
        for file in sorted(root.iterdir()):
            if file.is_file() and file.name not in (LINEAGE_FILE, FIXES_FILE):
                self.link(file, Path(file.name))
        taken = set(folders)
        behind = sorted(file.name for file in root.iterdir() if file.is_dir() and file.name not in taken)
        if behind:
            self.notes.append(f"Folders that stay behind: {', '.join(behind)}")

    def _target(self, name: Path) -> Path | None:
        """The place of a file, with its folder; None where it is taken."""
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"{name}: lies outside the data set's own folder, so that a new version cannot have it. Bring all of "
                "it into one folder with `detframe convert`."
            )
        target = self.root / name
        if target in self._done:
            return None
        self._done.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, by name."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def top_folder(name: Path | PurePosixPath) -> str:
    """First folder of a relative path, "" for a file that is in none."""
    return name.parts[0] if len(name.parts) > 1 else ""
