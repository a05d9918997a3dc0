"""An artefact is the model: what it answers is what its checkpoint does, or it is not written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.export.conftest import save
from torch import Tensor, nn
from torch.nn.functional import interpolate

import detframe.export.quantize as quantize_module
import detframe.export.runtime as runtime_module
import detframe.export.torchscript as torchscript_module
import detframe.export.verb as verb_module
from detframe.cli import main
from detframe.data.annotations import DataError
from detframe.data.coco import read_coco
from detframe.data.datamodule import DetectionDataModule
from detframe.data.dataset import DetectionDataset, collate
from detframe.data.images import read_image
from detframe.data.scenes import CLASS_NAMES
from detframe.data.synthetic import write_dataset
from detframe.export.artefact import Artefact
from detframe.export.half import half_detector
from detframe.export.proof_images import calibration_paths, split_of_run
from detframe.export.runtime import OUTPUTS, Answer, ArtefactError, Images, Metadata, load
from detframe.export.verify import Difference, Proof, difference, strange_images
from detframe.metrics.rows import TruthRows
from detframe.models.backbones import TimmBackbone
from detframe.models.calibration import Calibration
from detframe.models.heads.dense import DenseHead
from detframe.models.heads.rtdetr import RTDETRHead
from detframe.models.hybrid_encoder import HybridEncoder
from detframe.models.necks import SimpleFeaturePyramid
from detframe.monitoring.window import from_json, limits, values_of
from detframe.training.task import DetectionTask

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
FORMATS = {
    "torchscript": "model.torchscript",
    "program": "model.pt2",
    "onnx": "model.onnx",
    "openvino": "model.openvino",
}


def task_of(run: Path) -> DetectionTask:
    path = run / "checkpoints" / "best.ckpt"
    return DetectionTask.load_from_checkpoint(path, map_location="cpu", weights_only=True)


@pytest.fixture
def detr() -> DetectionTask:
    """With random weights whose scores are not all alike."""
    torch.manual_seed(0)
    task = DetectionTask(
        class_names=["nut", "bolt"],
        backbone=partial(TimmBackbone, name="test_resnet"),
        neck=partial(HybridEncoder, channels=32),
        head=partial(RTDETRHead, queries=20, layers=2),
        image_size=(64, 64),
    ).eval()
    for module in task.detector.head.modules():
        if isinstance(module, nn.Linear) and module.out_features == 2:
            nn.init.normal_(module.weight, std=0.5)
    return task


def test_an_artefact_answers_as_the_task_does_with_the_loader_s_images(run: Path) -> None:
    task = task_of(run).eval()
    index = read_coco(run.parents[1] / "data" / "val.json").index
    dataset = DetectionDataset(index, (96, 128))
    batch = collate([dataset[i] for i in range(len(index))])
    assert batch is not None
    thresholds = torch.linspace(0.2, 0.6, len(CLASS_NAMES))
    artefact = Artefact(task.detector, (96, 128), False, thresholds.tolist())
    with torch.inference_mode():
        expected = task.predict_step(batch._replace(images=batch.images.float() / 255), 0)
        assert expected is not None
        for place in range(len(index)):
            image = torch.from_numpy(np.array(Image.open(index.path(place)).convert("RGB"))).permute(2, 0, 1)
            found = artefact(image[None])
            torch.testing.assert_close(found.boxes[0], expected.boxes[place], atol=1e-3, rtol=0)
            torch.testing.assert_close(found.scores[0], expected.scores[place], atol=1e-5, rtol=0)
            assert torch.equal(found.confident, found.valid & (found.scores >= thresholds[found.labels]))
            at_least = [found.scores[found.valid & (found.labels == label)].sum() for label in range(len(CLASS_NAMES))]
            assert (found.candidates[0] >= torch.stack(at_least) - 1e-4).all()  # nothing is calibrated here
    assert expected.valid.sum() > 50


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every format, by the command line."""
    out = tmp_path_factory.mktemp("artefacts")
    for name in FORMATS:
        assert main(["export", str(run / "checkpoints" / "best.ckpt"), "--to", name, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_answers_alike_whatever_the_image(run: Path, exported: Path, name: str) -> None:
    proof = json.loads((exported / f"{FORMATS[name]}.proof.json").read_text())
    assert proof["passed"]
    assert proof["split"] == "val"
    assert proof["images"] == 4 + len(strange_images(96, 128))
    assert proof["detections"] > 300
    assert proof["unmatched"] <= 2  # of the detector's random weights some scores are equal in the grey margin
    assert proof["map"] == pytest.approx(proof["map_checkpoint"], abs=1e-6)
    assert set(proof["metadata"]["thresholds"]) == set(CLASS_NAMES)
    assert proof["metadata"]["profile_map"] == pytest.approx(proof["map_checkpoint"])

    artefact = load(exported / FORMATS[name], threads=1)
    assert artefact.metadata.class_names == list(CLASS_NAMES)
    assert artefact.metadata.image_size == (96, 128)
    assert len(artefact.metadata.checkpoint_hash) == len(artefact.metadata.dataset_hash) == 64
    thresholds = [artefact.metadata.thresholds[name] for name in CLASS_NAMES]
    eager = Artefact(task_of(run).detector, (96, 128), False, thresholds)
    noise = np.random.default_rng(1).integers(0, 256, (5, 3, 61, 203)).astype(np.uint8)
    for images in (noise, noise[:1, :, :, :60].copy(), noise[:2, :, :2, :2].copy()):
        with torch.inference_mode():
            expected = Answer(*(column.numpy() for column in eager(torch.from_numpy(images))))
        found = artefact.run(images)
        assert difference(expected, found).unmatched <= 2
        np.testing.assert_allclose(found.candidates, expected.candidates, rtol=1e-3)
        np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-3)
        assert (found.confident == found.valid & (found.scores >= np.array(thresholds)[found.labels])).all()
    pixel = noise[:1, :, :1, :1].copy()  # where places are nearly alike, and which are suppressed is open
    with torch.inference_mode():
        best = eager(torch.from_numpy(pixel)).scores.max().item()
    found = artefact.run(pixel)
    assert found.scores.max() == pytest.approx(best, abs=1e-3)
    assert found.boxes.max() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_page_s_examples_run_without_detframe(exported: Path, tmp_path: Path, name: str) -> None:
    (text,) = re.findall(rf"```python\n# with_{name}\.py\n(.*?)```", PAGE.read_text(), re.S)
    assert len(text.splitlines()) <= 20
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8))
    image.save(tmp_path / "image.jpg")
    (tmp_path / FORMATS[name]).symlink_to(exported / FORMATS[name])
    blocked = "import sys; sys.modules['detframe'] = None\n"
    command = [sys.executable, "-W", "ignore", "-c", blocked + text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pixels = np.array(Image.open(tmp_path / "image.jpg")).transpose(2, 0, 1)[None]
    answer = load(exported / FORMATS[name]).run(pixels)
    lines = done.stdout.splitlines()
    assert len(lines) == answer.confident.sum()
    if lines:
        assert lines[0].split()[0] == CLASS_NAMES[answer.labels[answer.confident][0]]


@pytest.mark.slow
def test_torchscript_takes_floats_too(exported: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = torch.jit.load(str(exported / "model.torchscript"))
    image = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    with torch.inference_mode():
        for whole, real in zip(module(image), module(image / 255), strict=True):
            torch.testing.assert_close(whole, real, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 40), (200, 159), (200, 333), (13, 1), (64, 64), (1080, 70), (9, 333)])
def test_onnx_resizes_to_the_last_grey(size: tuple[int, int], tmp_path: Path) -> None:
    import onnxruntime

    from detframe.export.onnx_resize import resize_antialiased

    class Resize(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return interpolate(images, size=(64, 40), mode="bilinear", align_corners=False, antialias=True)

    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Resize(),
            (images,),
            dynamo=True,
            opset_version=18,
            custom_translation_table={torch.ops.aten._upsample_bilinear2d_aa.default: resize_antialiased},
            verbose=False,
        )
    assert program is not None
    program.save(tmp_path / "resize.onnx")
    session: Any = onnxruntime.InferenceSession(tmp_path / "resize.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.array_equal(found, Resize()(images).numpy())


@pytest.mark.slow
def test_a_transformer_that_cannot_be_scripted_is_traced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "backbone": partial(TimmBackbone, name="test_vit"),
        "neck": partial(SimpleFeaturePyramid, channels=32),
        "head": partial(DenseHead, width=16, depth=1),
    }
    task = DetectionTask(class_names=["nut"], image_size=(64, 64), **parts)
    artefact = Artefact(task.detector, (64, 64), True, [0.0])
    torchscript_module.write_torchscript(artefact, Metadata(["nut"], (64, 64), True), tmp_path / "model.torchscript")
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 70, 50)).astype(np.uint8)
    with torch.inference_mode():
        expected = artefact(torch.from_numpy(images))
    np.testing.assert_allclose(load(tmp_path / "model.torchscript").run(images).scores, expected.scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_calibration_is_inside(name: str, run: Path, tmp_path: Path) -> None:
    task = task_of(run)
    task.detector.calibration = Calibration(len(CLASS_NAMES))
    task.detector.calibration.logits += 1.5  # scores rise, and their order stays
    path = save(task, tmp_path / "checkpoints" / "calibrated.ckpt")
    data = str(run.parents[1] / "data" / "test.json")
    assert main(["export", str(path), "--data", data, "--to", name]) == 0
    found = load(tmp_path / "export" / FORMATS[name])
    assert found.metadata.calibrated
    assert found.metadata.thresholds == {}  # the test split is not for choosing
    images = strange_images(96, 128)["wide"]
    plain = Artefact(task_of(run).detector, (96, 128), False, [0.0] * len(CLASS_NAMES))
    with torch.inference_mode():
        raw = plain(torch.from_numpy(images)).scores.double()
    answer = found.run(images)
    assert np.array_equal(answer.confident, answer.valid)
    kept = answer.valid[0]
    expected = torch.sigmoid(torch.logit(raw[0]) + 1.5).sort(descending=True).values.numpy()
    np.testing.assert_allclose(answer.scores[0][kept], expected[kept], atol=1e-3)


@pytest.mark.slow
def test_a_failed_proof_leaves_a_picture_and_no_artefact(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = torchscript_module.write_torchscript

    def damaged(artefact: Artefact, metadata: Metadata, path: Path) -> None:
        artefact.height += 32
        whole(artefact, metadata, path)

    monkeypatch.setattr(torchscript_module, "write_torchscript", damaged)
    assert main(["export", str(run / "checkpoints" / "best.ckpt"), "--out", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.torchscript.worst.jpg"]
    (tmp_path / "out" / "model.torchscript").write_text("of last week")
    (tmp_path / "out" / "model.torchscript.proof.json").write_text("{}")
    assert main(["export", str(run / "checkpoints" / "best.ckpt"), "--out", str(tmp_path / "out")]) == 1
    names = ["model.torchscript.before", "model.torchscript.before.proof.json", "model.torchscript.worst.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / names[0]).read_text() == "of last week"
    error = capsys.readouterr().err
    assert "model.torchscript is not written" in error
    assert "have no partner" in error
    with Image.open(tmp_path / "out" / "model.torchscript.worst.jpg") as picture:
        assert min(picture.size) >= 96


@pytest.mark.slow
def test_openvino_compiles_for_the_first_two_shapes_that_come_again(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core: Any = import_module("openvino").Core
    used: list[str] = []

    class Core:
        def __init__(self) -> None:
            self.core = core()

        def read_model(self, path: Path) -> object:
            return self.core.read_model(path)

        def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Callable[[Images], Any]:  # noqa: ANN401
            shape, compiled = str(model.inputs[0].partial_shape), self.core.compile_model(model, device, settings)

            def answers(images: Images) -> object:
                used.append(shape)
                return compiled(images)

            return answers

    monkeypatch.setattr("openvino.Core", Core)
    run = load(exported / "model.openvino", 1).run
    any_size = "[?,3,?,?]"
    generator = np.random.default_rng(0)
    for height, width, own in [(70, 90, "[1,3,70,90]"), (96, 128, "[1,3,96,128]"), (40, 40, any_size)]:
        image = generator.integers(0, 256, (1, 3, height, width)).astype(np.uint8)
        first, *_ = [run(image) for _ in range(3)]
        assert first.valid.any()
        deadline = time.monotonic() + 60
        while (answer := run(image)) and used[-1] != own:
            assert time.monotonic() < deadline
        for name, once, again in zip(OUTPUTS, first, answer, strict=True):
            np.testing.assert_allclose(np.asarray(again, float), np.asarray(once, float), 0, 1e-3, err_msg=name)
    assert set(used) == {any_size, "[1,3,70,90]", "[1,3,96,128]"}


@pytest.mark.slow
def test_int8_keeps_its_map(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(run / "checkpoints" / "best.ckpt"), "--to", "openvino", "--out", str(tmp_path)]
    assert main([*arguments, "--precision", "int8", "--max_drop", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["map_checkpoint"] - report["map"] <= 0.5
    path = tmp_path / "model.int8.openvino"
    found = load(path, 1)
    assert found.metadata.precision == "int8"
    assert 'element_type="i8"' in (path / "model.xml").read_text()
    model = import_module("openvino").Core().read_model(path / "model.xml")
    quantised: dict[str, list[bool]] = {"Convolution": [], "MatMul": []}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in quantised:
            reads = operation.input_value(0).get_node().get_type_name()
            quantised[operation.get_type_name()].append(reads == "FakeQuantize")
    assert not quantised["Convolution"][0]
    assert sum(quantised["Convolution"]) > len(quantised["Convolution"]) / 2
    assert quantised["MatMul"] == [False, False]  # they resize the image, along one side and the other
    (size,) = (file.stat().st_size for file in path.glob("*.bin"))
    assert size < sum(parameter.numel() for parameter in task_of(run).detector.parameters()) * 2
    assert_profiled_by_its_own_answers(run, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("torchscript", "bfloat16"), ("program", "float16"), ("onnx", "float16"), ("openvino", "bfloat16")],
)
def test_half_precision_keeps_its_map(
    run: Path, tmp_path: Path, name: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(run / "checkpoints" / "best.ckpt"), "--to", name, "--out", str(tmp_path), "--json"]
    assert main([*arguments, "--precision", precision, "--max_drop", "0.02"]) == 0
    report = json.loads(capsys.readouterr().out)
    path = tmp_path / FORMATS[name].replace(".", f".{precision}.")
    assert load(path).metadata.precision == precision
    assert report["map_checkpoint"] - report["map"] <= 0.02
    assert report["score"] > 0  # another precision it is
    assert_profiled_by_its_own_answers(run, path)


def assert_profiled_by_its_own_answers(run: Path, path: Path) -> None:
    artefact = load(path)
    index = read_coco(run.parents[1] / "data" / "val.json").index
    thresholds = limits(artefact.metadata.thresholds, index.class_names)
    images = [read_image(index.path(place)).numpy() for place in range(len(index))]
    values = [values_of(image, artefact.run(image[None]), thresholds) for image in images]
    profile = from_json(artefact.metadata.profile, path.name)
    np.testing.assert_allclose(profile.sums, np.nansum(values, axis=0), atol=0.02 * len(index))


def test_the_head_of_detr_stays_in_float32(detr: DetectionTask) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    half = half_detector(detr.detector, torch.float16)
    assert {value.dtype for value in half.head.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert {value.dtype for value in half.backbone.parameters()} == {torch.float16}
    with torch.inference_mode():
        expected, found = detr.detector(images), half(images)
    assert expected.scores.std() > 0.01
    torch.testing.assert_close(found.scores, expected.scores, atol=0.02, rtol=0)
    assert {value.dtype for value in detr.detector.parameters()} == {torch.float32}  # a copy was made


def test_held_out_images_prove_and_choose_thresholds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DetectionDataModule(root=run.parents[1] / "data", train="val.json", val=None, val_fraction=0.5)
    names = data.index("val").file_names
    assert len(names) == 2
    block: dict[str, Any] = {"root": str(data.root), "train": "val.json", "val": None, "test": "test.json"}
    block |= {"val_fraction": 0.5, "group_by": None, "seed": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": block}))
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    assert main(["export", str(tmp_path / "checkpoints" / "best.ckpt"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["split"] == "val"
    assert list(report["per_image"])[:2] == list(names)
    assert report["metadata"]["dataset_hash"] == data.hashes("val")["hash"]
    assert set(report["metadata"]["thresholds"]) == set(CLASS_NAMES)
    paths = calibration_paths(tmp_path / "config.yaml")
    assert paths == [data.index("train").path(place) for place in range(2)]


def test_held_out_images_that_were_trained_on_prove_nothing(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", train=6, val=1, test=1)
    index = DetectionDataModule(root=data, train="train.json", val_fraction=0.5).index("val")
    block = {"root": str(data), "train": "train.json", "val_fraction": 0.5, "group_by": None, "seed": 0}
    config, manifest = tmp_path / "config.yaml", tmp_path / "data_manifest.json"
    config.write_text(yaml.safe_dump({"data": block}))
    hashes = index.hashes(index.image_digests())
    for recorded in (hashes, hashes | {"annotations_hash": "of labels that have been mended since"}):
        manifest.write_text(json.dumps({"splits": {"val": recorded}}))
        split = split_of_run(None, tmp_path, 0, list(CLASS_NAMES))
        assert split is not None
        assert split.hash == hashes["hash"]
    config.write_text(yaml.safe_dump({"data": block | {"seed": 1}}))
    with pytest.raises(DataError, match=r"may have trained on them\..*--data"):
        split_of_run(None, tmp_path, 0, list(CLASS_NAMES))


def test_reduced_precision_is_judged_by_its_map() -> None:
    apart = Difference(10, 9, 0.4, 9e-4)
    assert Proof({"a": apart}, 0.9, 0.8951, 1, 1).faults(0.005) == []
    (fault,) = Proof({"a": apart}, 0.9, 0.89, 1, 1).faults(0.005)
    assert "mAP falls from 0.9000 to 0.8900, by more than 0.005" in fault
    assert len(Proof({"a": apart}, 0.9, 0.89, 1, 1).faults()) == 2


def test_what_stays_in_float() -> None:
    openvino: Any = import_module("openvino")
    ops: Any = import_module("openvino.opset13")
    image = ops.parameter([1, 4, 8, 8], np.float32)
    layers = {"resized": ops.relu(image)}

    def convolve(name: str, source: str, kernel: tuple[int, ...]) -> None:
        make = ops.convolution if len(kernel) == 4 else ops.group_convolution
        weights = np.ones(kernel, np.float32)
        layers[name] = make(layers[source], weights, [1, 1], [0, 0], [0, 0], [1, 1])

    convolve("first", "resized", (4, 4, 1, 1))
    convolve("second", "first", (4, 4, 1, 1))
    convolve("third", "second", (4, 4, 1, 1))
    convolve("depthwise", "third", (4, 1, 1, 1, 1))
    convolve("grouped", "depthwise", (2, 2, 2, 1, 1))
    layers["decoded"] = ops.exp(layers["grouped"])
    for name, layer in layers.items():
        layer.set_friendly_name(name)
    model = openvino.Model([layers["decoded"]], [image], "small")
    assert set(layers) & set(quantize_module.in_float(model)) == {"resized", "first", "second", "depthwise", "decoded"}


def test_images_that_ranges_are_read_from_have_all_classes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = read_coco(run.parents[1] / "data" / "val.json").index
    monkeypatch.setattr(quantize_module, "CALIBRATION_IMAGES", 2)
    chosen = quantize_module.calibration_images(index)
    assert len(chosen) == 2
    assert set(chosen) <= {index.path(place) for place in range(len(index))}
    monkeypatch.setattr(quantize_module, "CALIBRATION_IMAGES", 99)
    assert len(quantize_module.calibration_images(index)) == len(index)


def test_how_well_an_image_s_objects_are_found() -> None:
    near, far = [0.0, 0, 10, 10], [50.0, 50, 60, 70]
    images = torch.tensor([0, 0, 2])
    truths = TruthRows(
        images, torch.tensor([near, far, near]), torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.bool)
    )
    found = answer([near, far, far], [0.8, 0.9, 0.4], [0, 0, 1])
    assert quantize_module.quality(found, truths, 0) == pytest.approx((0.8 + 0.4) / 2)
    assert quantize_module.quality(found, truths, 2) == pytest.approx(0.8)
    assert quantize_module.quality(found, truths, 1) == pytest.approx(1 - 0.9)


def answer(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Answer:
    valid = np.ones((1, len(scores)), dtype=np.bool_)
    columns = np.array([boxes], dtype=np.float32), np.array([scores], dtype=np.float32), np.array([labels])
    return Answer(*columns, valid, valid, np.zeros((1, 2), np.float32), np.ones((1, 1), np.float32))


def test_answers_are_compared_as_sets() -> None:
    near, far = [0.0, 0, 10, 10], [50.0, 50, 60, 70]
    expected = answer([near, far], [0.9, 0.9], [0, 1])
    assert difference(expected, expected) == (2, 0, 0.0, 0.0)
    assert difference(expected, answer([far, near], [0.9, 0.9], [1, 0])).unmatched == 0
    moved = difference(expected, answer([[0.0, 0, 10, 10.25], far], [0.9005, 0.9], [0, 1]))
    assert moved[:3] == (2, 0, 0.25)
    assert moved.score == pytest.approx(0.0005, abs=1e-6)
    assert difference(expected, answer([near], [0.9], [0])).unmatched == 1
    assert difference(expected, answer([near, far], [0.9, 0.9], [0, 0])).unmatched == 2
    assert difference(expected, answer([near, [50.0, 50, 60, 71]], [0.9, 0.9], [0, 1])).unmatched == 2
    assert difference(answer([near], [0.9], [0]), answer([near, far], [0.9, 0.8], [0, 1])).unmatched == 1
    # Below the limit nothing is compared, and just above it the other may be just below.
    assert difference(answer([near], [0.9], [0]), answer([near, far], [0.9, 0.04], [0, 1])).unmatched == 0
    assert difference(answer([near], [0.0504], [0]), answer([near], [0.0498], [0])).unmatched == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}/checkpoints/none.ckpt"], "no such checkpoint"),
        (["{run}/config.yaml"], "is no checkpoint of detframe"),
        (["{run}/checkpoints/best.ckpt", "--data", "{run}/nowhere"], "no such file or folder"),
        (["{run}/checkpoints/best.ckpt", "--aim", "f3"], "--aim is 'f3'"),
        (["{run}/checkpoints/best.ckpt", "--to", "coreml"], "coreml"),
        (["{run}/checkpoints/best.ckpt", "--precision", "int8"], "int8 is of --to openvino, not of torchscript"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(argument.format(run=run) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_weights_that_are_not_finite_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = DetectionTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    name, weight = next(iter(task.detector.head.named_parameters()))
    nn.init.constant_(weight, float("nan"))
    assert main(["export", str(save(task, tmp_path / "spoilt.ckpt"))]) == 2
    assert f"spoilt.ckpt: head.{name} has values that are not finite" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_json_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", f"{run}/config.yaml/below", "--json"]
    assert main(["export", f"{run}/checkpoints/best.ckpt", *out]) == 2
    assert "cannot be read or written (Not a directory)" in json.loads(capsys.readouterr().out)["error"]


def test_data_of_other_classes_and_missing_libraries_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.parents[1] / "data", tmp_path, dirs_exist_ok=True)
    other = json.loads((tmp_path / "val.json").read_text())
    other["categories"][0]["name"] = "rivet"
    (tmp_path / "val.json").write_text(json.dumps(other))
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    assert main(["export", checkpoint, "--data", str(tmp_path / "val.json")]) == 2
    assert "rivet" in capsys.readouterr().err
    monkeypatch.setattr(verb_module, "find_spec", lambda name: None)
    assert main(["export", checkpoint, "--to", "onnx"]) == 2
    assert "pip install 'detframe[export]'" in capsys.readouterr().err


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such artefact"):
        load(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_text("nothing")
    with pytest.raises(ArtefactError, match="cannot be loaded"):
        load(tmp_path / "model.onnx")
    (tmp_path / "model.tflite").touch()
    with pytest.raises(ArtefactError, match=r"their names end in \.torchscript"):
        load(tmp_path / "model.tflite")


def test_metadata_are_read_as_written_and_later_keys_passed_over() -> None:
    metadata = Metadata(["nut"], (96, 128), False, {"nut": 0.4}, True, "a", "b", {"torch": "2"})
    content = json.loads(metadata.to_json())
    assert Metadata.from_json(json.dumps({**content, "of_next_year": 1})) == metadata
    assert Answer._fields == OUTPUTS


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", "null", "nonsense", '{"class_names": 5, "image_size": [9, 9], "stretch": false}']
    + [f'{{"class_names": ["nut"], "image_size": {size}, "stretch": false}}' for size in ("5", "[9]", '"ab"')],
)
def test_damaged_metadata_are_a_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").touch()
    monkeypatch.setitem(runtime_module._LOADERS, ".onnx", lambda path, threads: (text, None))
    with pytest.raises(ArtefactError, match=r"model.onnx: its metadata are damaged; export it anew\.$"):
        load(tmp_path / "model.onnx")
