"""The data set of the quickstart: :mod:`detframe.data.scenes` drawn into a folder as COCO JSON."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from detframe.data.scenes import CLASS_NAMES, DRAWING_VERSION, draw_scene

_GENERATOR = "detframe.data.synthetic"
_EMPTY_EVERY = 12  # by position, so that each split has empty and crowded images however few it has
_CROWDED_EVERY = 8
_PUBLISH_ATTEMPTS = 10


def write_dataset(root: Path, train: int = 1000, val: int = 60, test: int = 150, seed: int = 0) -> Path:
    """Draw the data set into a folder as COCO JSON, unless it is there already.

    The folder appears complete or not at all, also when several processes draw it at once or one is killed.

    Args:
        root: Folder to hold ``train.json``, ``val.json``, ``test.json`` and ``images/``.
        train: Training images.
        val: Validation images.
        test: Test images.
        seed: The same seed gives the same pixels; a split's images do not depend on how many there are.

    Returns:
        ``root``.

    Raises:
        ValueError: ``root`` holds something else than a data set that this function drew.
    """
    root = Path(root)
    counts = {"train": train, "val": val, "test": test}
    if _is_complete(root, counts, seed):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(root)
    # Beside its destination, because only a rename within one file system is atomic.
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        drawn = Path(temporary) / "drawn"
        (drawn / "images").mkdir(parents=True)
        for split, count in counts.items():
            _write_split(drawn, split, count, _info(counts, seed))
        _publish(drawn, root, counts, seed)
    return root


def _info(counts: dict[str, int], seed: int) -> dict[str, Any]:
    """The ``info`` field: what makes two data sets of this generator the same."""
    return {
        "description": "Metal parts on workshop surfaces, drawn by detframe",
        "generator": _GENERATOR,
        "version": DRAWING_VERSION,
        "parameters": {**counts, "seed": seed},
    }


def _objects_in(position: int, rng: np.random.Generator) -> int:
    if position % _EMPTY_EVERY == _EMPTY_EVERY - 1:
        return 0
    if position % _CROWDED_EVERY == _CROWDED_EVERY - 4:
        return int(rng.integers(14, 23))
    return int(rng.integers(1, 10))


def _write_split(root: Path, split: str, count: int, info: dict[str, Any]) -> None:
    """Draw the images of one split and write its annotations last."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    console = Console(stderr=True)
    for position in track(range(count), f"Drawing the {split} images", console=console, transient=True):
        rng = np.random.default_rng([info["parameters"]["seed"], list(info["parameters"]).index(split), position])
        scene = draw_scene(rng, _objects_in(position, rng))
        name = f"{split}_{position:04d}.jpg"
        Image.fromarray(scene.image).save(root / "images" / name, quality=95)
        height, width = scene.image.shape[:2]
        images.append(
            {"id": position + 1, "file_name": name, "width": width, "height": height, "surface": scene.surface}
        )
        for (x1, y1, x2, y2), label, area in zip(
            scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": position + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


def _is_complete(root: Path, counts: dict[str, int], seed: int) -> bool:
    """Whether the folder holds every file of the data set with these parameters."""
    try:
        present = {path.name for path in (root / "images").iterdir()}
        for split in counts:
            content = json.loads((root / f"{split}.json").read_text())
            names = {image["file_name"] for image in content["images"]}
            if content["info"] != _info(counts, seed) or not names <= present:
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _refuse_foreign(root: Path) -> None:
    """Raise unless the folder is absent, empty or of this generator: nobody's data is ever replaced."""
    if not root.exists():
        return
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; name a folder to draw the data set into")
    entries = {path.name for path in root.iterdir()}
    if not entries:
        return
    try:
        generator = json.loads((root / "train.json").read_text())["info"]["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        generator = None
    foreign = entries - {"train.json", "val.json", "test.json", "images"}
    if generator != _GENERATOR or foreign:
        found = ", ".join(sorted(foreign or entries)[:3])
        raise ValueError(f"{root}: holds other data ({found}); name another folder, or empty this one")


def _publish(drawn: Path, root: Path, counts: dict[str, int], seed: int) -> None:
    """Rename the drawn folder to its place, in the stead of an outdated one, unless another process was faster."""
    for attempt in range(_PUBLISH_ATTEMPTS):
        if _is_complete(root, counts, seed):
            return
        try:
            if root.exists():
                root.rename(drawn.parent / f"outdated-{attempt}")
            drawn.rename(root)
        except OSError:  # another process renamed in between: look again at what is there now
            if attempt == _PUBLISH_ATTEMPTS - 1:
                raise
            time.sleep(0.05)
