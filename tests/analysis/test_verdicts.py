"""Verdicts on mistakes whose cause is built into their vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detframe.analysis.diagnosis import Diagnosis, diagnose_rows, parse_aim
from detframe.analysis.embeddings import EMBEDDED
from detframe.analysis.evaluation import Evaluation, read_run
from detframe.analysis.mistakes import Mistake, mistakes
from detframe.analysis.prediction_table import schema_table
from detframe.analysis.verdicts import Judgement, Verdict, count_verdicts, judge_run
from detframe.cli import main
from detframe.metrics.errors import ErrorType

DIMENSIONS, PER_IMAGE, TRAINING_IMAGES = 16, 5, 12
SQUARE = np.array([0.0, 0, 20, 20])


class Rows:
    """Rows of a table with vectors, each about a direction with a little noise."""

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.rng = np.random.default_rng(0)
        self.rows: list[dict[str, object]] = []
        self.vectors: list[np.ndarray] = []

    def add(
        self, kind: str, image: int, column: int, label: int, direction: int, score: float | None, shift: float = 0.0
    ) -> None:
        box = SQUARE + np.array([column * 30 + shift, 0] * 2)
        number = len(self.rows)
        self.rows.append(
            {
                "kind": kind,
                "image_id": image,
                "file_name": f"{image}.png",
                "image_height": 100,
                "image_width": 400,
                "label": label,
                "category_id": label + 1,
                "class_name": ("nut", "bolt")[label],
                **dict(zip(("x1", "y1", "x2", "y2"), box.tolist(), strict=True)),
                "area": 400.0,
                "score": score,
                "ignore": None if kind == "detection" else False,
                "slot": number if kind == "detection" else None,
                "annotation_id": number if kind == "truth" else None,
            }
        )
        vector = self.rng.normal(0, self.noise, DIMENSIONS)
        vector[direction] += 1
        self.vectors.append(vector / np.linalg.norm(vector))

    def write(self, folder: Path, stage: str) -> None:
        table = schema_table({key: pa.array([row[key] for row in self.rows]) for key in self.rows[0]}, len(self.rows))
        if stage != "train":
            pq.write_table(table, folder / f"{stage}_predictions.parquet")
        vectors = pa.array([vector.astype(np.float16) for vector in self.vectors], pa.list_(pa.float16()))
        pq.write_table(
            table.append_column(EMBEDDED.field("embedding"), vectors), folder / f"{stage}_embeddings.parquet"
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nuts look along 0, bolts along 1, hard bolts along 2 (labelled in training, never found), nothing along 3."""
    folder = tmp_path_factory.mktemp("run")
    training = Rows(0.05)
    for image in range(TRAINING_IMAGES):
        for column, (label, direction) in enumerate([(0, 0), (1, 1), (1, 2)] * 2):
            training.add("truth", image, column, label, direction, None)
            if direction != 2:
                training.add("detection", image, column, label, direction, 0.9)
        training.add("detection", image, 8, 0, 3, 0.3)
    training.write(folder, "train")
    test = Rows(0.02)  # p-values of what belongs are anywhere from 0 to 1: these are more typical than most
    for image in range(4):
        for column, label in enumerate((0, 1)):
            test.add("truth", image, column, label, label, None)
            test.add("detection", image, column, label, label, 0.9)
    test.add("detection", 0, 5, 0, 0, 0.95)  # a nut that nobody labelled
    test.add("truth", 1, 5, 1, 0, None)  # a nut labelled as a bolt
    test.add("detection", 1, 5, 0, 0, 0.95)
    test.add("truth", 2, 5, 0, 7, None, shift=12)  # a label beside its nut
    test.add("detection", 2, 5, 0, 0, 0.95)
    test.add("truth", 3, 5, 1, 9, None)  # a bolt as never seen
    test.add("truth", 3, 6, 1, 2, None)  # a hard bolt
    test.add("truth", 3, 7, 1, 3, None)  # a label of nothing
    test.add("truth", 2, 8, 1, 2, None)  # a hard bolt that is taken for a nut
    test.add("detection", 2, 8, 0, 2, 0.95)
    test.write(folder, "test")
    return folder


@pytest.fixture(scope="module")
def evaluation(run: Path) -> Evaluation:
    return read_run(run)


@pytest.fixture(scope="module")
def diagnosis(evaluation: Evaluation) -> Diagnosis:
    return diagnose_rows(evaluation, parse_aim("f1"), [], {}, 10, 0)


@pytest.fixture(scope="module")
def judged(run: Path, evaluation: Evaluation, diagnosis: Diagnosis) -> dict[tuple[int, ErrorType, int], Judgement]:
    verdicts = judge_run(evaluation, diagnosis, run)
    assert verdicts is not None
    assert sum(count_verdicts(verdicts).values()) == len(mistakes(diagnosis))
    rows = diagnosis.rows

    def place(mistake: Mistake) -> int:
        own = rows.truths.boxes[mistake.truth] if mistake.detection < 0 else None
        box = own if own is not None else diagnosis.evidence.operating.errors.detections.boxes[mistake.detection]
        return int(box[0]) // 30

    return {(m.image, m.kind, place(m)): judgement for m, judgement in verdicts.judgements.items()}


@pytest.mark.parametrize(
    ("mistake", "verdict"),
    [
        ((0, ErrorType.BACKGROUND, 5), Verdict.ANNOTATION),
        ((1, ErrorType.CLASSIFICATION, 5), Verdict.ANNOTATION),
        ((2, ErrorType.LOCALISATION, 5), Verdict.ANNOTATION),
        ((2, ErrorType.MISSED, 5), Verdict.ANNOTATION),
        ((3, ErrorType.MISSED, 5), Verdict.GAP),
        ((3, ErrorType.MISSED, 6), Verdict.LIMITATION),
        ((3, ErrorType.MISSED, 7), Verdict.GAP),
        ((2, ErrorType.CLASSIFICATION, 8), Verdict.LIMITATION),
    ],
)
def test_a_cause_is_named(
    mistake: tuple[int, ErrorType, int], verdict: Verdict, judged: dict[tuple[int, ErrorType, int], Judgement]
) -> None:
    assert judged[mistake].verdict == verdict
    assert judged[mistake].confidence > 0.5


def test_the_evidence_can_be_counted(judged: dict[tuple[int, ErrorType, int], Judgement], run: Path) -> None:
    gap, hard = judged[3, ErrorType.MISSED, 5], judged[3, ErrorType.MISSED, 6]
    bolts, all_objects = 4 * TRAINING_IMAGES, 6 * TRAINING_IMAGES
    assert gap.typicality == pytest.approx(2 / (bolts + 1 + all_objects + 1))  # further away than any
    assert gap.alike == 0
    assert 10 < hard.alike <= bolts // 2  # the hard ones
    table = pq.read_table(run / "train_embeddings.parquet")
    for row in hard.nearest:
        vector = table["embedding"][row].as_py()
        assert table["kind"][row].as_py() == "truth"
        assert int(np.argmax(vector)) == 2
    assert (judged[0, ErrorType.BACKGROUND, 5].right, judged[0, ErrorType.BACKGROUND, 5].agreement) == (1, 1)
    assert judged[2, ErrorType.CLASSIFICATION, 8].agreement == 0  # it looks like bolts


def test_the_report_has_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--out", str(tmp_path), "--json", "--replicates", "10"]) == 0
    counts = json.loads(capsys.readouterr().out)["verdicts"]
    table = pq.read_table(tmp_path / "predictions.parquet")
    said = table["verdict"].to_pylist()
    assert counts == {verdict.value: said.count(verdict.value) for verdict in Verdict}
    assert counts["annotation issue"] >= 4
    assert [v is None for v in said] == [v is None for v in table["verdict_confidence"].to_pylist()]


def test_without_vectors_of_the_training_there_is_no_verdict(
    run: Path, evaluation: Evaluation, diagnosis: Diagnosis, tmp_path: Path
) -> None:
    for name in ("test_predictions", "test_embeddings"):
        (tmp_path / f"{name}.parquet").write_bytes((run / f"{name}.parquet").read_bytes())
    assert judge_run(evaluation._replace(source=str(tmp_path / "test_predictions.parquet")), diagnosis, run) is None
