"""Where data comes from: which splits a path holds, and which reader each of them wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detframe.data.annotations import AnnotationIndex, DataError, Reading, labels_alone, require_sound
from detframe.data.coco import read_coco
from detframe.data.voc import read_voc, voc_splits
from detframe.data.yaml_files import read_yaml
from detframe.data.yolo import read_yolo, yolo_splits

LINEAGE_FILE = "lineage.json"
"""In the folder of a data set that `detframe apply` made: what it was made of, and how."""

_ROBOFLOW_FILE = "_annotations.coco.json"
_WHAT_IS_READ = (
    "Name a COCO file, a folder of COCO files, a Pascal VOC root, a YOLO root or data.yaml, "
    "or a configuration with a `data:` block."
)


class NoDataSetError(DataError):
    """There are no annotations at a path, though there may be images."""


def read_splits(data: Path) -> dict[str, Reading]:
    """Read every split of a data set.

    Args:
        data: A COCO file (one split, of its name; see :func:`~detframe.data.coco.image_folders`), a folder with COCO
            files (``train.json``, ``annotations/instances_train2017.json``, ``train/_annotations.coco.json``), a Pascal
            VOC root, a YOLO root or its ``data.yaml``, or a training configuration with a ``data:`` block.

    Returns:
        Readings by split name.

    Raises:
        NoDataSetError: ``data`` is a folder without annotations.
        DataError: There is nothing of the kind, or a file of it cannot be read.
    """
    readers = _readers(data)
    usual = {"train": 0, "val": 1, "test": 2}
    return {split: readers[split]() for split in sorted(readers, key=lambda split: (usual.get(split, 3), split))}


def read_split(root: Path, split: str, images: Path | None = None) -> AnnotationIndex:
    """Read one split to train or evaluate on.

    Args:
        root: Folder that the split is relative to: a VOC or YOLO root, or a folder with COCO files.
        split: A COCO file, relative to ``root`` or absolute, or the name of a split of ``root``.
        images: Folder of the images, where they are not found from a COCO file.

    Raises:
        DataError: There is no such split, it cannot be read, or its annotations have errors.
    """
    return require_sound(_reader(root, split, images)())


def find_split(data: Path, images: Mapping[int, str], usual: str) -> tuple[Path, str, AnnotationIndex]:
    """The split that holds all of some images.

    Args:
        data: As :func:`read_splits` takes it.
        images: File names by id.
        usual: Name of the split to look at first.

    Returns:
        The data set, the name of its split, and that. Of a configuration, the data set is its root where that has the
        same split: all of it belongs together.

    Raises:
        DataError: No split holds them, or its annotations have errors other than of images.
    """
    readings = read_splits(data)
    for name in sorted(readings, key=lambda name: name != usual):
        index = readings[name].index
        if images.items() <= dict(zip(index.image_ids.tolist(), index.file_names, strict=True)).items():
            place, split = _in_root(data, index) or (data, name)
            return place, split, require_sound(labels_alone(readings[name]))
    raise DataError(f"{data}: no split of it holds the {len(images)} images in question. Give their data set.")


def _in_root(data: Path, index: AnnotationIndex) -> tuple[Path, str] | None:
    """The root of a configuration and the split of it that is the same, or None."""
    block = configuration_block(data)
    if block is None:
        return None
    root = _configured_root(block)
    try:
        readings = read_splits(root)
    except DataError:  # such as a root with files of several data sets, of which the configuration names some
        return None
    same = index.annotations_hash()
    return next(((root, name) for name, other in readings.items() if other.index.annotations_hash() == same), None)


def configuration_block(path: Path) -> dict[str, Any] | None:
    """Arguments of the data module in a training configuration, None where a path is none.

    Raises:
        DataError: It is YAML that cannot be read.
    """
    block = _load_yaml(path).get("data") if path.suffix.lower() in (".yaml", ".yml") else None
    return _arguments(block) if isinstance(block, dict) else None


def _arguments(block: dict[str, Any]) -> dict[str, Any]:
    """Of a data module, written plainly or under a class path."""
    found: dict[str, Any] = block.get("init_args", block)
    return found


def _readers(data: Path) -> dict[str, Callable[[], Reading]]:
    """A reader for each split; nothing large is read before it is called."""
    if data.is_dir():
        return _folder_readers(data, None)
    if not data.is_file():
        raise DataError(f"{data}: no such file or folder. {_WHAT_IS_READ}")
    if data.suffix.lower() == ".json":
        return {_coco_name(data): partial(read_coco, data)}
    if data.suffix.lower() in (".yaml", ".yml"):
        content = _load_yaml(data)
        if isinstance(content.get("data"), dict):
            return _configured_readers(data, _arguments(content["data"]))
        if "names" in content:
            return {split: partial(read_yolo, data, split) for split in yolo_splits(data)}
        raise DataError(f"{data}: has neither the `names` of a YOLO data set nor a `data:` block. {_WHAT_IS_READ}")
    raise DataError(f"{data}: is neither JSON nor YAML. {_WHAT_IS_READ}")


def _reader(root: Path, split: str, images: Path | None) -> Callable[[], Reading]:
    """The reader of one split of a root."""
    if split.endswith(".json"):
        return partial(read_coco, root / split, images)
    readers = _folder_readers(root, images) if root.is_dir() else _readers(root)
    if split not in readers:
        raise DataError(f"{root}: has no split {split!r}; there are {', '.join(readers)}. Correct the name.")
    return readers[split]


def _folder_readers(root: Path, images: Path | None) -> dict[str, Callable[[], Reading]]:
    formats: dict[str, dict[str, Callable[[], Reading]]] = {}
    if (root / "ImageSets" / "Main").is_dir() or any((root / "Annotations").glob("**/*.xml")):
        formats["Pascal VOC"] = {split: partial(read_voc, root, split) for split in voc_splits(root)}
    for yolo in _yolo_files(root):
        formats[yolo.name] = {split: partial(read_yolo, yolo, split) for split in yolo_splits(yolo)}
    coco = _coco_files(root)
    if coco:
        formats["COCO"] = {_coco_name(path): partial(read_coco, path, images) for path in coco}
    if len(formats) > 1:
        found = ", ".join(formats)
        raise DataError(f"{root}: holds more than one data set ({found}). Name a file, or move the others away.")
    if not formats:
        raise NoDataSetError(f"{root}: holds no annotations that can be read. {_WHAT_IS_READ}")
    return next(iter(formats.values()))


def _yolo_files(root: Path) -> list[Path]:
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    return [path for path in files if "names" in _load_yaml(path) and yolo_splits(path)]


def _coco_files(root: Path) -> list[Path]:
    """The COCO detection files of a folder, each with a split name of its own."""
    found = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob(f"*/{_ROBOFLOW_FILE}")]
    found = [path for path in found if path.name != LINEAGE_FILE]
    instances = [path for path in found if path.name.startswith("instances_")]
    # Beside these, COCO's own folder has captions and keypoints of the same images.
    files = sorted(instances or (path for path in found if _looks_like_coco(path)))
    names = [_coco_name(path) for path in files]
    for path in files:
        if names.count(_coco_name(path)) > 1:
            raise DataError(f"{root}: two files are called {_coco_name(path)}, such as {path}. Name one of them.")
    return files


def _looks_like_coco(path: Path) -> bool:
    """Whether a JSON file starts with one of COCO's keys, which spares loading large files to find out.

    One that is empty, cannot be read or is no JSON may have been a split: its reader refuses it by name.
    """
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return True
    text = start.decode(json.detect_encoding(start), errors="replace").lstrip()
    return text[:1] not in ("{", "[") or (
        text[0] == "{"
        and any(f'"{key}"' in text for key in ("images", "annotations", "categories", "licenses", "info"))
    )


def _coco_name(path: Path) -> str:
    return path.parent.name if path.name == _ROBOFLOW_FILE else path.stem.removeprefix("instances_")


def _configured_readers(path: Path, block: dict[str, Any]) -> dict[str, Callable[[], Reading]]:
    """The splits that a training configuration names, as `detframe fit` would read them."""
    root = _configured_root(block)
    if block.get("synthetic") and not root.exists():
        raise DataError(f"{path}: {root} is not drawn yet. Run `detframe fit` once, which draws it.")
    images = Path(block["images"]) if block.get("images") else None
    splits = {name: str(block[name]) for name in ("train", "val", "test") if block.get(name)}
    if not splits:
        raise DataError(f"{path}: its `data:` block names none of `train`, `val`, `test`. Name a split there.")
    return {name: _reader(root, split, images) for name, split in splits.items()}


def _configured_root(block: dict[str, Any]) -> Path:
    return Path(block.get("root") or ".")


def _load_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}
