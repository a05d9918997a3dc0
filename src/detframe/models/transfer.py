"""Begin from a pretrained detector: detframe's checkpoints, torchvision's weights, official RT-DETRv2 and D-FINE files.

Weights are matched by name and shape; what belongs to classes is matched by class name, row by row, so that a class
keeps its weights wherever its label moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models import Weights, WeightsEnum, get_model_weights, get_weight, list_models
from torchvision.models import detection as torchvision_detection

from detframe.listing import in_a_row
from detframe.models.detector import Detector
from detframe.models.official_keys import from_dfine, from_rtdetrv2

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "retinanet_resnet50_fpn_coco-eeacb38b.pth")
"""Files whose batch norms were trained with an epsilon of 0, which torchvision sets when it loads them."""


class Pretrained(NamedTuple):
    """Weights to begin from, under a :class:`~detframe.models.detector.Detector`'s names."""

    source: str
    state: dict[str, Tensor]
    class_names: list[str] | None  # by label as the head counts them, None where the file does not say


class Transfer(NamedTuple):
    """What became of each tensor."""

    loaded: list[str]
    remade: list[str]  # tensors of the detector that keep their fresh values, whole
    left: list[str]  # tensors of the file that have no place in the detector
    kept_classes: list[str]  # classes whose rows came along
    new_classes: list[str]  # classes whose rows are fresh

    def __str__(self) -> str:
        """One paragraph for the log."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what, names in (("made anew", self.remade), ("left aside", self.left)):
            parts.append(f"{len(names)} {what}" + (f" ({in_a_row(names)})" if names else ""))
        if self.kept_classes:
            parts.append(f"classes kept: {', '.join(self.kept_classes)}")
        if self.new_classes:
            parts.append(f"classes that start afresh: {', '.join(self.new_classes)}")
        return "; ".join(parts)


def initialise(detector: Detector, class_names: Sequence[str], source: str) -> Transfer:
    """Load what fits of a pretrained detector.

    Args:
        detector: Changed in place.
        class_names: Its classes by label.
        source: As :func:`read_pretrained` takes it.

    Raises:
        ValueError: The source cannot be read, or nothing in it fits.
    """
    pretrained = read_pretrained(source)
    state, transfer = fitted(detector, class_names, pretrained)
    if not transfer.loaded:
        raise ValueError(
            f"init_from: nothing in {source} fits this detector; it has {in_a_row(list(pretrained.state))}, the "
            f"detector {in_a_row(list(detector.state_dict()))}. Take the backbone, neck and head of that file."
        )
    detector.load_state_dict(state)
    return transfer


def fitted(
    detector: Detector, class_names: Sequence[str], pretrained: Pretrained
) -> tuple[dict[str, Tensor], Transfer]:
    """A state for the detector, from its own and from pretrained weights.

    Args:
        detector: Left as it is.
        class_names: Its classes by label.
        pretrained: Weights to take.

    Returns:
        The state, and what became of each tensor.
    """
    own = detector.state_dict()
    names = pretrained.class_names
    known = names is not None and list(names) != list(class_names)
    rows = {f"head.{key}": value for key, value in detector.head.class_rows(len(class_names)).items()} if known else {}
    theirs = {f"head.{key}": value for key, value in detector.head.class_rows(len(names or ())).items()}
    shared = [name for name in class_names if names is not None and name in names]

    state: dict[str, Tensor] = {}
    loaded: list[str] = []
    remade: list[str] = []
    for key, fresh in own.items():
        given = pretrained.state.get(key)
        if given is not None and key in rows and shared and given.shape[1:] == fresh.shape[1:]:
            assert names is not None
            labels = [(label, names.index(name)) for label, name in enumerate(class_names) if name in names]
            state[key] = _moved_rows(fresh, given, rows[key], theirs[key], labels)
            loaded.append(key)
        elif given is not None and key not in rows and given.shape == fresh.shape:
            state[key] = given
            loaded.append(key)
        else:
            state[key] = fresh
            # A count that frozen norms do not keep; and the normalisation, which is the backbone's own.
            if not key.endswith("num_batches_tracked") and key not in ("mean", "std"):
                remade.append(key)
    left = [key for key in pretrained.state if key not in own]
    moved = shared if rows else []
    new = [name for name in class_names if name not in shared] if rows else []
    return state, Transfer(loaded, remade, left, moved, new)


def _moved_rows(fresh: Tensor, given: Tensor, rows: Tensor, theirs: Tensor, labels: list[tuple[int, int]]) -> Tensor:
    """Rows of the classes in ``labels`` (own label, the file's) and of no class from the file, the others fresh."""
    moved = fresh.clone()
    general, their_general = _rows_of_no_class(fresh, rows), _rows_of_no_class(given, theirs)
    if len(general) == len(their_general):
        moved[general] = given[their_general].to(moved)
    for label, their_label in labels:
        moved[rows[label]] = given[theirs[their_label]].to(moved)
    return moved


def _rows_of_no_class(parameter: Tensor, rows: Tensor) -> Tensor:
    """As the background of a two-stage head."""
    free = torch.ones(len(parameter), dtype=torch.bool)
    free[rows.flatten()] = False
    return free.nonzero()[:, 0]


def read_pretrained(source: str) -> Pretrained:
    """Read weights and bring them under a detector's names.

    Args:
        source: A file (a checkpoint of detframe; a state dictionary of torchvision's Faster R-CNN, RetinaNet or FCOS; a
            checkpoint of RT-DETRv2 or D-FINE by their authors, of which one with 80 classes is taken for COCO's), or
            the name of torchvision's weights, as ``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``, which torchvision then
            downloads.

    Raises:
        ValueError: There is no such file or name, or it holds something else.
    """
    path = Path(source)
    if not path.is_file():
        named = _torchvision_weights_named(source)
        try:
            state = named.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network; a file that is not what it should be
            raise ValueError(
                f"init_from: torchvision's download of {source} failed ({error}). Give a local file."
            ) from error
        return from_torchvision(source, state, named.value)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and pickle each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"init_from: cannot read {source}: {reason[:200]}") from error
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        state = {k.removeprefix("detector."): v for k, v in content["state_dict"].items() if k.startswith("detector.")}
        return Pretrained(source, state, list(content.get("hyper_parameters", {}).get("class_names", ())) or None)
    if isinstance(content, Mapping) and any(key.startswith(("roi_heads.", "head.")) for key in content):
        known = {weights.url.rsplit("/", 1)[-1]: weights for weights in _torchvision_weights()}
        return from_torchvision(source, content, known.get(path.name))
    for read in (from_dfine, from_rtdetrv2):
        try:
            state = read(content)
        except (AttributeError, ValueError):
            continue
        coco = len(state.get("head.enc_score_head.bias", ())) == len(coco_names())
        return Pretrained(source, state, coco_names() if coco else None)
    raise ValueError(
        f"init_from: {source} is neither a checkpoint of detframe, nor a state dictionary of torchvision's detectors, "
        "nor a checkpoint of RT-DETRv2 or D-FINE."
    )


def from_torchvision(source: str, state: Mapping[str, Tensor], weights: Weights | None) -> Pretrained:
    """Weights of torchvision's Faster R-CNN, RetinaNet or FCOS under a detector's names.

    Args:
        source: How messages call them.
        state: The model's state dictionary, of any version of torchvision.
        weights: What torchvision says of them, None where the file is not one of its own.
    """
    renamed = {_renamed(key): value for key, value in state.items()}
    if weights is not None and weights.url.endswith(_WITHOUT_EPSILON):
        # So that a norm with the usual epsilon computes the same.
        renamed = {k: v - 1e-5 if k.endswith("running_var") else v for k, v in renamed.items()}
    names: list[str] | None = None
    if weights is not None:
        two_stage = any(key.startswith("roi_heads.") for key in state)
        names = list(weights.meta["categories"])[1 if two_stage else 0 :]  # the others count the background as a class
    return Pretrained(source, renamed, names)


def coco_names() -> list[str]:
    """COCO's 80 classes in order, as torchvision names them."""
    categories = get_weight("FCOS_ResNet50_FPN_Weights.COCO_V1").meta["categories"]
    return [name for name in categories if name not in ("__background__", "N/A")]


def _renamed(key: str) -> str:
    for old, new in (
        (r"^backbone\.fpn\.", "neck.fpn."),
        (r"^rpn\.head\.", "head.rpn."),
        (r"^roi_heads\.", "head."),
        (r"^head\.((?:classification|regression)_head)\.", r"head.towers.\1."),
        # Before version 0.13 these convolutions stood alone, and RetinaNet's with an activation after each.
        (r"^(neck\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
        (r"^(head\.rpn\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    ):
        key = re.sub(old, new, key)
    return key


def _torchvision_weights() -> list[Weights]:
    """All weights of torchvision's detectors."""
    names = list_models(module=torchvision_detection)
    return [entry.value for name in names for entry in get_model_weights(name)]


def _torchvision_weights_named(name: str) -> WeightsEnum:
    try:
        return get_weight(name)
    except ValueError as error:
        raise ValueError(
            f"init_from: {name} is no file, nor weights of torchvision's, which are named like "
            "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1."
        ) from error
