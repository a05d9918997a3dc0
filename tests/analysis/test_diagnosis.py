"""Every count of a diagnosis agrees with every other; the page holds what it promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from detframe.analysis.diagnosis import Diagnosis, diagnose_rows, parse_aim
from detframe.analysis.evaluation import Evaluation, read_results
from detframe.analysis.mistakes import choose, mistakes
from detframe.analysis.slicing import image_properties, metadata_columns
from detframe.cli import main
from detframe.metrics.average_precision import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE
from detframe.metrics.errors import NO_ERROR, ErrorType, count_errors

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def evaluation(detected: tuple[Path, Path]) -> Evaluation:
    return read_results(detected[1], detected[0])


@pytest.fixture(scope="module")
def diagnosis(evaluation: Evaluation) -> Diagnosis:
    return diagnose_rows(evaluation, parse_aim("f1"), [0.1], image_properties(evaluation, 100), 50, 0)


@pytest.fixture(scope="module")
def written(detected: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diagnosis")
    assert main(["diagnose", "--predictions", str(detected[1]), "--data", str(detected[0]), "--out", str(out)]) == 0
    return out


def test_all_counts_agree(evaluation: Evaluation, diagnosis: Diagnosis) -> None:
    rows, kept = diagnosis.rows, diagnosis.evidence.operating.rows
    classes = len(evaluation.class_names)
    objects = int((~rows.truths.ignore).sum())
    found = (diagnosis.evidence.errors.outcome == TRUE_POSITIVE).sum()
    wrong = (diagnosis.evidence.errors.outcome == FALSE_POSITIVE).sum()

    # AP, error types and the table are made of the same true positives.
    outcome = evaluation.table["outcome"].to_pylist()
    assert outcome.count("true_positive") == found == outcome.count("found")
    assert sum(int(curve.true_positives[-1]) for curve in diagnosis.evidence.curves if len(curve.thresholds)) == found
    assert int(count_errors(diagnosis.evidence.errors, classes)[:5].sum()) == wrong
    assert int(diagnosis.evidence.calibration.bins.counts.sum()) == found + wrong
    assert diagnosis.evidence.calibration.bins.mean_target[diagnosis.evidence.calibration.bins.counts > 0].shape
    hits = np.nansum(diagnosis.evidence.calibration.bins.counts * diagnosis.evidence.calibration.bins.mean_target)
    assert hits == pytest.approx(float(found))

    # So are the operating points, the errors there, the slices and the gallery.
    errors = diagnosis.evidence.operating.errors
    for label, point in enumerate(diagnosis.evidence.points):
        assert point is not None
        own = errors.detections.labels == label
        assert point.true_positives == int((errors.outcome[own] == TRUE_POSITIVE).sum())
        assert point.false_positives == int((errors.outcome[own] == FALSE_POSITIVE).sum())
    for result in diagnosis.slices:
        present = torch.from_numpy(result.part.truths) & ~rows.truths.ignore
        assert result.recall["total"] == int(present.sum())
        assert result.recall["hits"] == int((errors.found_by[present] >= 0).sum())
        of_slice = torch.from_numpy(result.part.detections)[kept] & (errors.outcome != IGNORED)
        assert result.precision["total"] == int(of_slice.sum())

    # The confusion matrix holds each object and each detection that counts once.
    matrix = diagnosis.evidence.confusion.matrix
    assert int(matrix[:classes].sum()) == objects
    assert int(matrix[:, :classes].sum()) == int((diagnosis.evidence.confusion.detection_cells[:, 0] >= 0).sum())
    every = mistakes(diagnosis)
    assert sum(m.detection >= 0 for m in every) == int((errors.error != NO_ERROR).sum())
    assert sum(m.kind == ErrorType.MISSED for m in every) == int(matrix[:classes, classes].sum())


def test_ap_is_one_number(diagnosis: Diagnosis) -> None:
    estimate = float(diagnosis.ap.overall.estimate)
    assert estimate == pytest.approx(diagnosis.metrics["map"], abs=1e-6)
    assert float(diagnosis.ap.per_iou.estimate[diagnosis.ious.index(0.5)]) == pytest.approx(
        diagnosis.metrics["map_50"], abs=1e-6
    )
    assert diagnosis.evidence.costs.ap == pytest.approx(diagnosis.metrics["map_50"], abs=1e-6)
    assert diagnosis.ap.overall.low < estimate < diagnosis.ap.overall.high
    per_class = [row["ap"] for row in diagnosis.metrics["per_class"].values()]
    np.testing.assert_allclose(diagnosis.ap.per_class.estimate, per_class, atol=1e-6)


def test_a_few_examples_show_every_cell(diagnosis: Diagnosis) -> None:
    every = mistakes(diagnosis)
    kinds = {(m.kind, m.cell) for m in every}
    chosen = choose(every, len(kinds))
    assert {(m.kind, m.cell) for m in chosen} == kinds
    assert len(choose(every, 10_000)) == len(every) > 0


def test_metadata_and_images_make_slices(diagnosis: Diagnosis) -> None:
    properties = {result.part.property for result in diagnosis.slices}
    assert {"camera", "brightness", "blur", "noise", "object size, px", "shape", "place"} <= properties
    camera = [result.part for result in diagnosis.slices if result.part.property == "camera"]
    assert {part.value for part in camera} == {"left", "right"}
    assert (camera[0].truths ^ camera[1].truths).all()
    assert metadata_columns([{"id": i, "line": 1} for i in range(30)]).keys() == {"id"}
    assert metadata_columns([{"name": str(i)} for i in range(30)]) == {}


def test_aims_are_met_or_refused(evaluation: Evaluation) -> None:
    for text, figure, least in (("precision=0.8", "precision", 0.8), ("recall=0.7", "recall", 0.7)):
        points = diagnose_rows(evaluation, parse_aim(text), [], {}, 10, 0).evidence.points
        reached = [getattr(point, figure) for point in points if point is not None]
        assert reached
        assert min(reached) >= least
    for text in ("f2", "precision=1.2", "cost=1", "cost=0:0", "recall=", "f1=1"):
        with pytest.raises(ValueError, match="--aim"):
            parse_aim(text)


def test_report_and_tables_say_the_same(written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    table = pq.read_table(written / "predictions.parquet")
    errors = table["error"].to_pylist()
    assert {name: errors.count(name) for name in report["errors"]} == {
        name: row["count"] for name, row in report["errors"].items()
    }
    kept = table["error_at_threshold"].to_pylist()
    assert sum(row["count_at_thresholds"] for row in report["errors"].values()) == sum(v is not None for v in kept)
    images = pq.read_table(written / "images.parquet")
    assert images.num_rows == report["images"] == 14
    assert sum(images["objects"].to_pylist()) == report["objects"]
    assert set(images["camera"].to_pylist()) == {"left", "right"}
    assert pq.read_table(written / "slices.parquet").num_rows == len(report["slices"])


def test_the_page_is_one_small_file_that_needs_nothing(written: Path) -> None:
    page = (written / "index.html").read_text()
    assert len(page) < 10e6
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    for heading in ("Classes", "What to do first", "Kinds of mistakes", "What is taken for what", "Curves", "Slices"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<figure tabindex") > 40


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_opens_in_a_browser_and_its_filters_work(written: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    probe = """<script>
      const links = [...document.querySelectorAll('a[data-filter]')];
      links[0].click();
      const shown = [...document.querySelectorAll('#mistakes figure:not([hidden])')];
      const wanted = JSON.parse(links[0].dataset.filter);
      shown[0].click();
      const first = document.querySelector('dialog.viewer img').src;
      document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
      const result = {
        fits: shown.length > 0 && shown.every((f) => f.dataset.detected === wanted.detected),
        fewer: shown.length < document.querySelectorAll('#mistakes figure').length,
        paged: shown.length === 1 || document.querySelector('dialog.viewer img').src !== first,
        wide: document.documentElement.scrollWidth <= window.innerWidth,
      };
      document.body.dataset.probe = JSON.stringify(result);
    </script>"""
    (tmp_path / "index.html").write_text((written / "index.html").read_text() + probe)
    base = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    url = f"file://{tmp_path / 'index.html'}"
    opened = subprocess.run(
        [*base, "--window-size=500,900", "--enable-logging=stderr", "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CONSOLE" not in opened.stderr
    probed = re.search(r'data-probe="([^"]*)"', opened.stdout)
    assert probed
    assert json.loads(probed[1].replace("&quot;", '"')) == {"fits": True, "fewer": True, "paged": True, "wide": True}

    picture = tmp_path / "page.png"
    command = [*base, "--window-size=1200,2000", f"--screenshot={picture}", f"file://{written / 'index.html'}"]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (pixels[:60] < 90).all(axis=2).any()  # the heading is dark on light
    blue = (abs(pixels - [0, 114, 178]) < 8).all(axis=2)
    assert blue.sum() > 500  # bars of the costs


def test_it_works_without_the_images(
    detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = read_results(detected[1], detected[0])
    pq.write_table(evaluation.table, tmp_path / "test_predictions.parquet")
    assert main(["diagnose", str(tmp_path), "--json", "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["map"] == pytest.approx(json.loads((tmp_path / "out" / "report.json").read_text())["map"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The images are not at hand" in page
    assert "<figure tabindex" not in page


def test_a_folder_that_cannot_be_written_is_named(
    detected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = ["--predictions", str(detected[1]), "--data", str(detected[0]), "--out", str(tmp_path / "file" / "out")]
    assert main(["diagnose", *given, "--measured", "0", "--replicates", "2"]) == 2
    assert str(tmp_path / "file" / "out") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "holds no test_predictions.parquet"),
        (["--predictions", "nowhere.json"], "--predictions and --data"),
        ([".", "--aim", "f3"], "--aim is 'f3'"),
        ([".", "--ious", "[1.5]"], "--ious"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
