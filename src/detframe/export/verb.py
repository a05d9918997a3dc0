"""The verb ``export``: a checkpoint becomes one file that holds everything, proven before it gets its name."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from detframe.analysis.diagnosis import parse_aim
from detframe.analysis.evidence import Aim, examine
from detframe.data.annotations import DataError, file_digest
from detframe.data.images import ImageError, read_image
from detframe.drawing import Truth, draw_boxes
from detframe.export.artefact import Artefact
from detframe.export.card import card_of, read_given, write_card
from detframe.export.checkpoint import answering, artefact_of, read_checkpoint
from detframe.export.half import HALVES, half_detector
from detframe.export.proof_images import AnnotatedSplit, ProofImages, calibration_paths, split_of_run
from detframe.export.runtime import Answer, ArtefactError, Images, Metadata, load, megabytes
from detframe.export.verify import LEAST_SCORE, Proof, metrics, prove, rows_of_answers
from detframe.monitoring.window import as_json as window_as_json
from detframe.monitoring.window import limits, values_of, window_of
from detframe.refusals import refuse

Format = Literal["torchscript", "program", "onnx", "openvino"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]


class Writer(NamedTuple):
    """Where a format is written, and what its file is called."""

    function: str  # "module:function"
    name: str


WRITERS: dict[str, Writer] = {
    "torchscript": Writer("detframe.export.torchscript:write_torchscript", "model.torchscript"),
    "program": Writer("detframe.export.program:write_program", "model.pt2"),
    "onnx": Writer("detframe.export.onnx:write_onnx", "model.onnx"),
    "openvino": Writer("detframe.export.openvino:write_openvino", "model.openvino"),
}
_FORMATS_OF: dict[str, tuple[str, ...]] = {
    "float32": tuple(WRITERS),
    "float16": ("torchscript", "program", "onnx"),
    # Of onnxruntime bfloat16 has no convolution that a proof could run on a CPU.
    "bfloat16": ("torchscript", "program", "openvino"),
    "int8": ("openvino",),
}
_SET_ASIDE = ".before"
"""Added to the name of an older artefact where a new one fails its proof: no server takes the one for the other."""
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_LIBRARIES = ("detframe", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def export(
    checkpoint: Path,
    to: Format = "torchscript",
    out: Path | None = None,
    data: Path | None = None,
    aim: str = "f1",
    images: int = 0,
    precision: Precision = "float32",
    max_drop: float = 0.005,
    card: Path | None = None,
    json: bool = False,
) -> int:
    """Write a checkpoint as one file that takes an image as the camera gives it and answers with final boxes in it.

    Inside are the resizing of training, normalisation, the network with averaged weights, decoding, suppression,
    calibration, operating thresholds and the way back to the image's pixels; class names and hashes are its metadata.

      torchscript  model.torchscript, for torch and torchvision, also in C++
      program      model.pt2, for torch.export.load, its successor
      onnx         model.onnx, for onnxruntime alone
      openvino     model.openvino/, for OpenVINO on Intel's processors

    Before it gets its name it is proven: on the images of the validation split and on strange ones (dark, huge, wide,
    one pixel high ...) it has to find what the checkpoint finds, within half a pixel and 0.001 of the score, and to
    have its mAP within 0.0005. The proof lies beside it, and MODEL_CARD.md with what is known of the detector.

    --precision makes it faster, and is judged by mAP alone, which may fall by --max_drop:

      int8      for Intel's processors, with --to openvino: convolutions in 8 bits, their ranges read from up to 200
                images of the training split, operations given back to float32 until mAP bears it
      float16   for GPUs, with --to torchscript, program or onnx: backbone and neck in half precision, the head in
                float32
      bfloat16  the same, with --to torchscript or program; with --to openvino for Intel's processors that have it

    Exit code: 0 when it is written; 1 when the proof failed, and then nothing is written but a picture of the worst
    image, and an older artefact of that name is set aside; 2 when the input cannot be used.

    Args:
        checkpoint: Such as runs/bccd/version_0/checkpoints/best.ckpt, or calibrated.ckpt.
        to: The format.
        out: Folder to write to; by default `export` in the run's folder.
        data: Data to prove it on and to choose operating thresholds by: its `val` split, or the only one there is. By
            default what the run's config.yaml names; where that has no validation split, the test split proves and
            no threshold is chosen.
        aim: What the threshold of each class is chosen for, as for `diagnose`: f1, precision=0.95, recall=0.9 or
            cost=1:10. The artefact answers with all detections; those from the threshold on are `confident`.
        images: Prove on so many images of the split, evenly chosen; 0 takes all.
        precision: That the network computes in. The artefact's name tells, as model.int8.openvino does.
        max_drop: The most that mAP may fall by another precision than float32, absolute; else nothing is written.
        card: YAML file with what the model card cannot know: intended_use, limits, licences.
        json: Print the proof as JSON and nothing else.
    """
    console = Console(stderr=True, quiet=json, highlight=False)
    run = checkpoint.parent.parent
    folder = out or run / "export"
    try:
        chosen = parse_aim(aim)
        given = read_given(card)
        task = read_checkpoint(checkpoint)
        _require_finite(checkpoint, task.detector)
        _require_libraries(to, precision)
        names = task.class_names
        split = split_of_run(data, run, images, names)
        if precision != "float32" and split is None:
            raise DataError(f"{run}: --precision {precision} needs data to measure mAP on. Name some with --data.")
        calibration = calibration_paths(data or run / "config.yaml") if precision == "int8" else []
        eager = artefact_of(task, [0.0] * len(names))
        detect = answering(eager)
        every = ProofImages(split, eager.height, eager.width)
        expected = {name: detect(image) for name, image in _tracked(every, "Asking the checkpoint", console)}
        measure = partial(_map, split)
        map_expected = measure(list(expected.values()))
        thresholds = _thresholds(list(expected.values()), split, chosen)
        about = Metadata(
            class_names=names,
            image_size=(eager.height, eager.width),
            stretch=eager.stretch,
            thresholds=thresholds,
            calibrated=task.detector.calibration is not None,
            precision=precision,
            profile_map=map_expected,
            checkpoint_hash=file_digest(checkpoint).hex(),
            dataset_hash="" if split is None else split.hash,
            versions={name: version for name in _LIBRARIES if (version := _version(name))},
        )
        described = partial(_described, about, split)
        named = WRITERS[to].name if precision == "float32" else WRITERS[to].name.replace(".", f".{precision}.", 1)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / named
            written = artefact_of(task, [thresholds.get(name, 0.0) for name in names])
            own = list(expected.values())
            if precision in HALVES and to != "openvino":
                written.detector = half_detector(task.detector, HALVES[precision])
                own = [answering(written)(image) for _, image in _tracked(every, f"Asking in {precision}", console)]
            about = described(own)
            with console.status(f"Writing {named}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn of what is deprecated in each other
                _function(WRITERS[to])(written, about, path)
            if to == "openvino" and precision != "float32":
                assert split is not None
                _reduce_openvino(path, about, calibration, split, max_drop, console)
                _profile_openvino(path, split, described, console)
            artefact = load(path)
            proof = prove(
                expected,
                _tracked(every, f"Asking {named}", console),
                artefact.run,
                detect,
                map_expected,
                measure,
            )
            faults = proof.faults(None if precision == "float32" else max_drop)
            report = _report(proof, faults, about, path, split)
            shown = folder / f"{named}.worst.jpg"
            if faults:
                aside = _set_aside(folder, named)
                worst = next(image for name, image in every if name == proof.worst)
                _draw(worst, expected[proof.worst], artefact.run(worst), names).save(shown)
            else:
                _put(path, folder / named)
                shown.unlink(missing_ok=True)
                (folder / f"{named}.proof.json").write_text(dumps(report, indent=1), encoding="utf-8")
                with console.status("Writing the model card"):
                    write_card(folder, card_of(run, folder, given))
    except (DataError, ImageError, ArtefactError, ValueError, OSError) as error:
        return refuse(error, json, out=folder)
    if json:
        print(dumps(report))
    else:
        Console(highlight=False).print(_table(report))
    if faults:
        print(
            f"{named} is not written: {'; '.join(faults)}. The worst image is {proof.worst!r}: {shown}"
            + (f". An older one is set aside as {aside}" if aside else ""),
            file=console.file,
        )
        return 1
    if not json:
        Console(highlight=False, markup=False).print(f"Written to {folder / named}", soft_wrap=True)
    return 0


def _thresholds(answers: list[Answer], split: AnnotatedSplit | None, aim: Aim) -> dict[str, float]:
    """Operating thresholds by class name, of answers that begin with a split's; none by a test split."""
    if split is None or split.name == "test":
        return {}
    names = split.index.class_names
    found = examine(rows_of_answers(answers[: len(split.index)], split.truths), len(names), aim)
    return dict(zip(names, found.thresholds.tolist(), strict=True))


def _described(about: Metadata, split: AnnotatedSplit | None, answers: Sequence[Answer]) -> Metadata:
    """With the profile of a split: what its images are like, and the artefact's own answers, which begin with them."""
    if split is None:
        return about
    values = []
    for place, answer in enumerate(answers[: len(split.index)]):
        image = read_image(split.index.path(place)).numpy()
        values.append(values_of(image, answer, limits(about.thresholds, about.class_names)))
    return replace(about, profile=window_as_json(window_of(about.class_names, np.array(values), None)))


def _map(split: AnnotatedSplit | None, answers: Sequence[Answer]) -> float | None:
    """Of answers that begin with a split's; None where there is no split."""
    if split is None:
        return None
    found = metrics(answers[: len(split.index)], split.truths, split.areas, split.index.class_names)
    return float(found["map"])


def _reduce_openvino(
    path: Path, about: Metadata, calibration: Sequence[Path], split: AnnotatedSplit, max_drop: float, console: Console
) -> None:
    if about.precision != "int8":  # for bfloat16 the metadata is all there is to it
        return
    from detframe.export.quantize import quantize

    with console.status(f"Quantising by {len(calibration)} training images"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize(path, calibration, split, max_drop, console.print, about)


def _profile_openvino(
    path: Path, split: AnnotatedSplit, described: Callable[[Sequence[Answer]], Metadata], console: Console
) -> None:
    """Give a file its profile, by its own answers: it is OpenVINO that makes it less precise, not what was written."""
    from detframe.export.openvino import describe_openvino

    run = load(path).run
    images = [split.index.path(place) for place in range(len(split.index))]
    tracked = track(images, f"Asking {path.name} for its profile", console=console, transient=True)
    describe_openvino(described([run(read_image(image)[None].numpy()) for image in tracked]), path)


def _tracked(images: ProofImages, doing: str, console: Console) -> Iterable[tuple[str, Images]]:
    return track(images, doing, len(images), console=console, transient=True)


def _function(writer: Writer) -> Callable[[Artefact, Metadata, Path], None]:
    module, name = writer.function.split(":")
    function: Callable[[Artefact, Metadata, Path], None] = getattr(import_module(module), name)
    return function


def _require_finite(checkpoint: Path, detector: nn.Module) -> None:
    """Refuse weights that are not finite: they find nothing, which a proof passes, or a library ends the process.

    Raises:
        ArtefactError: A weight is not finite; the message names the first tensor.
    """
    for name, value in detector.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ArtefactError(
                f"{checkpoint}: {name} has values that are not finite, so it finds nothing. Take an earlier "
                "checkpoint of the run, or train anew with a lower learning rate."
            )


def _require_libraries(to: str, precision: str) -> None:
    """Refuse what cannot be written here.

    Raises:
        ArtefactError: A library is missing, or the format has no such precision.
    """
    if to not in _FORMATS_OF[precision]:
        raise ArtefactError(f"--precision {precision} is of --to {' or '.join(_FORMATS_OF[precision])}, not of {to}.")
    for name in (*_NEEDED.get(to, ()), *(("nncf",) if precision == "int8" else ())):
        if find_spec(name) is None:
            raise ArtefactError(f"--to {to} needs {name}. Run `pip install 'detframe[export]'`.")


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _put(path: Path, place: Path) -> None:
    """Move what was proven to its place; an older one goes."""
    if place.is_dir():
        shutil.rmtree(place)
    path.replace(place)


def _set_aside(folder: Path, name: str) -> Path | None:
    """Rename an older artefact and its proof; None where there is none."""
    place, aside = folder / name, folder / f"{name}{_SET_ASIDE}"
    if not place.exists():
        return None
    _put(place, aside)
    proof = folder / f"{name}.proof.json"
    if proof.exists():
        proof.replace(folder / f"{name}{_SET_ASIDE}.proof.json")
    return aside


def _report(
    proof: Proof, faults: list[str], about: Metadata, path: Path, split: AnnotatedSplit | None
) -> dict[str, Any]:
    return {
        "artefact": path.name,
        "passed": not faults,
        "faults": faults,
        "images": len(proof.images),
        "data": None if split is None else str(split.index.source),
        "split": None if split is None else split.name,
        **proof.total._asdict(),
        "map_checkpoint": proof.map_expected,
        "map": proof.map_found,
        "milliseconds_checkpoint": proof.milliseconds_expected,
        "milliseconds": proof.milliseconds_found,
        "megabytes": megabytes(path),
        "worst": proof.worst,
        "metadata": about.said(),
        "per_image": {name: difference._asdict() for name, difference in proof.images.items()},
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table("", "checkpoint", report["artefact"], title_justify="left")
    if report["map"] is not None:
        table.add_row("mAP", f"{report['map_checkpoint']:.5f}", f"{report['map']:.5f}")
    table.add_row("ms an image", f"{report['milliseconds_checkpoint']:.1f}", f"{report['milliseconds']:.1f}")
    table.add_row("MB", "", f"{report['megabytes']:.1f}")
    table.add_row("images", "", str(report["images"]))
    if report["metadata"]["precision"] == "float32":
        table.add_row("detections compared", "", str(report["detections"]))
        table.add_row("without a partner", "", str(report["unmatched"]))
        table.add_row("most apart, pixels", "", f"{report['box']:.5f}")
        table.add_row("most apart, score", "", f"{report['score']:.7f}")
    for name, threshold in report["metadata"]["thresholds"].items():
        table.add_row(f"threshold {name}", "", f"{threshold:.3f}")
    return table


def _draw(image: Images, expected: Answer, found: Answer, names: list[str]) -> Image.Image:
    """An image with the artefact's detections solid and the checkpoint's dashed."""
    kept = found.valid[0] & (found.scores[0] >= LEAST_SCORE)
    wanted = expected.valid[0] & (expected.scores[0] >= LEAST_SCORE)
    truth = Truth(
        torch.from_numpy(expected.boxes[0][wanted]),
        torch.from_numpy(expected.labels[0][wanted]),
        torch.zeros(int(wanted.sum()), dtype=torch.bool),
    )
    boxes, labels, scores = (torch.from_numpy(column[0][kept]) for column in (found.boxes, found.labels, found.scores))
    return draw_boxes(torch.from_numpy(image[0]), boxes, labels, scores, names, truth, min_side=480)
