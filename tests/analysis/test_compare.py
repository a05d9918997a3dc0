"""`compare` and its gate: figures are those of `diagnose`, verdicts are honest, exit codes are what a release needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detframe.analysis.comparison import Verdict, verdict_of
from detframe.analysis.diagnosis import parse_aim
from detframe.analysis.evaluation import read_results
from detframe.analysis.evidence import examine
from detframe.analysis.gate import read_gate
from detframe.analysis.prediction_table import rows_of_table
from detframe.cli import main
from detframe.data.annotations import DataError


@pytest.fixture(scope="session")
def worse(detected: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same results with a third of the detections gone and boxes moved."""
    rng = np.random.default_rng(1)
    rows = [row for row in json.loads(detected[1].read_text()) if rng.random() > 0.3]
    for row in rows:
        row["bbox"][0] += row["bbox"][2] * rng.normal(0, 0.1)
    path = tmp_path_factory.mktemp("worse") / "worse.json"
    path.write_text(json.dumps(rows))
    return path


def compare(base: Path, candidate: Path, data: Path, out: Path, *options: str, code: int = 0) -> dict[str, Any]:
    arguments = ["compare", str(base), str(candidate), "--data", str(data), "--out", str(out), "--replicates", "300"]
    assert main([*arguments, *options]) == code
    document: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return document


@pytest.fixture(scope="session")
def document(
    detected: tuple[Path, Path], worse: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(detected[1], worse, detected[0], out)


def test_each_side_has_the_figures_of_diagnose(
    detected: tuple[Path, Path], worse: Path, document: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    lines = {line["name"]: line for line in document[1]["lines"]}
    for side, path in (("base", detected[1]), ("candidate", worse)):
        arguments = ["diagnose", "--predictions", str(path), "--data", str(detected[0]), "--out", str(tmp_path / side)]
        assert main([*arguments, "--replicates", "2"]) == 0
        report = json.loads((tmp_path / side / "report.json").read_text())
        for name in ("map", "map_50", "map_75"):
            assert lines[name][side] == pytest.approx(report[name], abs=1e-7)  # float32 there
        for name, figures in report["per_class"].items():
            assert lines[f"ap/{name}"][side] == pytest.approx(figures["ap"], abs=1e-7)
        evaluation = read_results(path, detected[0])
        evidence = examine(
            rows_of_table(evaluation.table, evaluation.image_ids), len(evaluation.class_names), parse_aim("f1")
        )
        assert lines["d_ece"][side] == pytest.approx(evidence.calibration.detection_ece, abs=1e-9)
        for name, point in zip(evaluation.class_names, evidence.points, strict=True):
            if point is not None:
                assert lines[f"precision/{name}"][side] == pytest.approx(point.precision, abs=1e-9)
                assert lines[f"recall/{name}"][side] == pytest.approx(point.recall, abs=1e-9)
    assert lines["map"]["gain"] == pytest.approx(lines["map"]["candidate"] - lines["map"]["base"])


def test_what_is_much_worse_is_called_so_and_pictures_show_it(document: tuple[Path, dict[str, Any]]) -> None:
    out, figures = document
    lines = {line["name"]: line for line in figures["lines"]}
    assert lines["map"]["verdict"] == "worse"
    assert lines["map"]["low"] < lines["map"]["gain"] < lines["map"]["high"] < 0
    assert {line["family"] for line in figures["lines"]} == {"overall", "class", "slice"}
    assert figures["changes"]["broken"] > figures["changes"]["fixed"]
    broken = [one for one in figures["instances"] if one["kind"] == "broken"]
    assert len(broken) == figures["changes"]["broken"]
    assert all(isinstance(one["annotation"], int) for one in broken)
    page = (out / "index.html").read_text()
    assert len(re.findall(r"data-kind=\"broken\"", page)) == min(len(broken), 30)
    assert "http" not in re.sub(
        r"http://www\.w3\.org/[\w/#.-]*|http://purl\.org/[\w/.-]*|https?://creativecommons[\w/.-]*|https://matplotlib\.org/",
        "",
        page,
    )
    text = (out / "compare.md").read_text()
    assert "| map | " in text
    assert f"{figures['changes']['fixed']} fixed, {figures['changes']['broken']} broken" in text


def test_the_same_detector_is_the_same(detected: tuple[Path, Path], tmp_path: Path) -> None:
    figures = compare(detected[1], detected[1], detected[0], tmp_path, "--measured", "0")
    assert {line["verdict"] for line in figures["lines"]} == {"same within margin"}
    assert figures["instances"] == []


def test_a_gate_opens_and_closes(
    detected: tuple[Path, Path], worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads(detected[0].read_text())
    name = truth["images"][0]["file_name"]
    (tmp_path / "listed.json").write_text(json.dumps([{"image": name, "annotation": truth["annotations"][0]["id"]}]))
    gate = tmp_path / "gate.yaml"
    gate.write_text("margins: {map: 0.9, 'ap/*': 0.95}\nmust_pass: listed.json\n")
    figures = compare(detected[1], detected[1], detected[0], tmp_path / "open", "--gate", str(gate))
    assert figures["passed"]
    classes = len(truth["categories"])
    assert [one["holds"] for one in figures["gate"]] == [True] * (2 + classes)
    assert "The gate is open" in capsys.readouterr().out

    gate.write_text("margins: {map: 0.01}\nmust_improve: [map_50]\n")
    figures = compare(detected[1], worse, detected[0], tmp_path / "closed", "--gate", str(gate), code=1)
    assert not figures["passed"]
    assert [one["holds"] for one in figures["gate"]] == [False, False]
    said = capsys.readouterr().out
    assert "FAILS  map at most 0.01 worse" in said
    assert "The gate is closed" in said


def test_what_must_pass_is_looked_up_in_the_candidate(
    detected: tuple[Path, Path], worse: Path, document: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    broken, fixed = (
        next(one for one in document[1]["instances"] if one["kind"] == kind) for kind in ("broken", "fixed")
    )
    asked = [{"image": one["image"], "annotation": one["annotation"]} for one in (broken, fixed)]
    (tmp_path / "gate.yaml").write_text(json.dumps({"must_pass": [*asked, broken["image"]]}))
    options = ("--gate", str(tmp_path / "gate.yaml"))
    figures = compare(detected[1], worse, detected[0], tmp_path / "out", *options, code=1)
    assert [one["holds"] for one in figures["gate"]] == [False, True, False]


def test_speed_and_size_come_from_one_benchmark_of_both(detected: tuple[Path, Path], tmp_path: Path) -> None:
    contestants = [
        {"name": name, "single": {"median": median, "p95": 99.0}, "megabytes": size}
        for name, median, size in (("old.onnx", 40.0, 10.0), ("new.onnx", 50.0, 9.0))
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"contestants": contestants}))
    (tmp_path / "gate.yaml").write_text("slower: 1.2\nlarger: 1.0\n")
    options = ("--gate", str(tmp_path / "gate.yaml"), "--benchmark", str(tmp_path / "benchmark.json"))
    figures = compare(detected[1], detected[1], detected[0], tmp_path / "out", *options, code=1)
    assert [(one["holds"], one["found"]) for one in figures["gate"]] == [(False, "1.25 times"), (True, "0.90 times")]
    assert "| ms at batch 1 | 40.0 | 50.0 | 1.25 |" in (tmp_path / "out" / "compare.md").read_text()


def test_verdicts() -> None:
    assert verdict_of(0.02, 0.015, 0.025, 0.001, 0.01) is Verdict.BETTER
    assert verdict_of(-0.02, -0.025, -0.015, 0.001, 0.01) is Verdict.WORSE
    assert verdict_of(0.004, 0.002, 0.006, 0.001, 0.01) is Verdict.SAME  # surely better, by nothing to speak of
    assert verdict_of(0.0, -0.05, 0.05, 0.9, 0.01) is Verdict.UNKNOWN
    assert verdict_of(0.05, 0.001, 0.1, 0.06, 0.01) is Verdict.UNKNOWN


def test_other_data_are_refused(
    detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(detected[1]), str(detected[1]), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "Give the data that it is about with --data" in capsys.readouterr().err
    for text, words in (
        ("margin: {map: 1}", "has 'margin'; a gate has margins"),
        ("margins: {map: -1}", "A number from 0 on is needed"),
        ("margins: {map: .nan}", "the margin of map is nan. A number from 0 on is needed"),
        ("margins: {mapp: 0.1}", "The gate names 'mapp', which nothing is called. There are map,"),
        ("must_pass: [3]", "must_pass has 3"),
    ):
        (tmp_path / "gate.yaml").write_text(text)
        options = ["--data", str(detected[0]), "--gate", str(tmp_path / "gate.yaml"), "--replicates", "5"]
        assert main([*arguments, *options, "--measured", "0"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1


def test_what_a_gate_cannot_ask_is_said_before_the_long_part(
    detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detframe.analysis.comparison.compare_evaluations", None)
    name = json.loads(detected[0].read_text())["images"][0]["file_name"]
    for content, words in (
        ({"must_pass": ["nowhere.jpg"]}, "names 'nowhere.jpg', which"),
        (
            {"must_pass": [{"image": name, "annotation": 10**6}]},
            f"names annotation 1000000 of {name}, which has no such",
        ),
        ({"slower": 1.1}, "Give --benchmark"),
    ):
        (tmp_path / "gate.yaml").write_text(json.dumps(content))
        options = ["--data", str(detected[0]), "--gate", str(tmp_path / "gate.yaml"), "--out", str(tmp_path / "out")]
        assert main(["compare", str(detected[1]), str(detected[1]), *options, "--measured", "0"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1


def test_the_margin_of_the_gate_goes_before_that_of_the_option(detected: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("margins: {'ap/*': 0.05, '*': 0.03}\n")
    options = ("--gate", str(tmp_path / "gate.yaml"), "--margin", "0.02", "--measured", "0")
    figures = compare(detected[1], detected[1], detected[0], tmp_path / "out", *options)
    margins = {line["name"]: line["margin"] for line in figures["lines"]}
    assert margins["map"] == 0.03
    assert {margin for name, margin in margins.items() if name.startswith("ap/")} == {0.05}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("margins: 0.01", 'margins is 0.01. Write it like {map: 0.01, "ap/*": 0.03}.'),
        ("margins: [map]", "margins is ['map']. Write it like"),
        ("margins: 0", "margins is 0. Write it like"),
        ("must_improve: map", "must_improve is 'map'. Write it like [map]."),
        ("must_improve: {map: 0.01}", "must_improve is {'map': 0.01}. Write it like [map]."),
        ("must_pass: 5", "must_pass is 5. Write it like [a.jpg], or the name of a JSON file with such a list."),
        ("must_pass: {image: a.jpg}", "must_pass is {'image': 'a.jpg'}. Write it like"),
    ],
)
def test_a_gate_of_other_types_is_refused_by_key(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        read_gate(path)
    assert str(raised.value).startswith(f"{path}: {words}")


def test_a_file_of_what_must_pass_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("must_pass: listed.json")
    (tmp_path / "listed.json").write_text('{"image": "a.jpg"}')
    with pytest.raises(DataError, match=r"listed\.json: is no list"):
        read_gate(tmp_path / "gate.yaml")


def test_an_empty_gate_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("")
    assert read_gate(tmp_path / "gate.yaml") == ({}, [], [], None, None)
