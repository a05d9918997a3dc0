"""What is chosen from pools in which it is known what the detector would learn from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detframe.analysis.embeddings import CHECKPOINT, EMBEDDED, IMAGES
from detframe.analysis.prediction_table import schema_table
from detframe.cli import main
from detframe.data.coco import read_coco

NAMES = ("nut", "bolt", "washer")
SIDE, DIMENSIONS = 160, 24


class Thing(NamedTuple):
    """A row of a table."""

    kind: str
    image: int
    label: int
    score: float | None
    column: int = 0  # where in the image
    look: int | None = None  # direction of its vector; None: any
    size: float = 20.0


def write_table(
    things: list[Thing],
    metadata: dict[int, dict[str, Any]],
    folder: Path,
    stage: str,
    copies: dict[int, tuple[str, int]] | None = None,
) -> None:
    """Tables as `predict` (of the stage "") and `test` write them, with images of random squares, or of another's."""
    rng = np.random.default_rng(len(things))
    rows, vectors = [], []
    for number, thing in enumerate(things):
        box = np.array([0, 0, thing.size, thing.size]) + [thing.column * 30, 0] * 2
        rows.append(
            {
                "kind": thing.kind,
                "image_id": thing.image,
                "file_name": f"{thing.image}.png",
                "image_height": SIDE,
                "image_width": SIDE,
                "label": thing.label,
                "category_id": 10 * (thing.label + 1),
                "class_name": NAMES[thing.label],
                **dict(zip(("x1", "y1", "x2", "y2"), box.tolist(), strict=True)),
                "area": thing.size**2,
                "score": thing.score,
                "ignore": None if thing.kind == "detection" else False,
                "slot": number if thing.kind == "detection" else None,
                "annotation_id": number if thing.kind == "truth" else None,
            }
        )
        vector = np.abs(rng.normal(0, 0.2 if thing.look is None else 0.05, DIMENSIONS))
        if thing.look is not None:
            vector[thing.look] += 1
        vectors.append((vector / np.linalg.norm(vector)).astype(np.float16))
    table = schema_table({name: pa.array([row[name] for row in rows]) for name in rows[0]}, len(rows))
    if stage not in ("", "train"):
        pq.write_table(table, folder / f"{stage}_predictions.parquet")
    prefix = f"{stage}_" if stage else ""
    embedded = table.append_column(EMBEDDED.field("embedding"), pa.array(vectors, pa.list_(pa.float16())))
    pq.write_table(embedded, folder / f"{prefix}embeddings.parquet")

    pictures = folder / (stage or "images")
    pictures.mkdir(exist_ok=True)
    wholes = []
    for image in sorted(metadata):
        name, number = (copies or {}).get(image, (stage, image))
        rng = np.random.default_rng([len(name), number])
        cells = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        path = pictures / f"{image}.png"
        Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)
        vector = rng.random(DIMENSIONS)
        wholes.append(
            {
                "image_id": image,
                "file_name": f"{image}.png",
                "path": str(path),
                "image_height": SIDE,
                "image_width": SIDE,
                "metadata": json.dumps(metadata[image]),
                "thumbnail": cells.ravel(),
                "embedding": (vector / np.linalg.norm(vector)).astype(np.float16),
            }
        )
    columns = {field.name: pa.array([row[field.name] for row in wholes], field.type) for field in IMAGES}
    whole = pa.table(columns).replace_schema_metadata({CHECKPOINT: "abc"})
    pq.write_table(whole, folder / f"{prefix}image_embeddings.parquet")


KINDS: tuple[tuple[str, float | None], ...] = (("truth", None), ("detection", 0.9))


def objects(image: int, label: int, found: bool) -> list[Thing]:
    """One found for sure and a false one that is doubtful; or one that is found with as much doubt; or missed."""
    truth, false = Thing("truth", image, label, None, label, label), Thing("detection", image, label, DOUBT, 3, label)
    if image % 2:
        return [truth, Thing("detection", image, label, DOUBT, label, label)]
    return [truth, false, *([Thing("detection", image, label, 0.9, label, label)] if found else [])]


DOUBT = 0.35  # half of the detections with this score are right


def write_run(folder: Path, things: list[Thing]) -> Path:
    write_table(things, {image: {} for image in range(IMAGES_OF_RUN)}, folder, "val")
    (folder / "val_metrics.json").write_text(json.dumps({"per_class": {name: {} for name in NAMES}}))
    training = [Thing(kind, i, c, s, c, c) for i in range(30) for c in range(3) for kind, s in KINDS]
    write_table(training, {image: {} for image in range(30)}, folder, "train")
    return folder


IMAGES_OF_RUN = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolts are the weak class; some nuts look along 7, as none in training, and are missed."""
    things = [t for i in range(IMAGES_OF_RUN) for label in range(3) for t in objects(i, label, found=label != 1)]
    things += [Thing("truth", image, 0, None, 4, 7) for image in range(0, 20, 2)]
    return write_run(tmp_path_factory.mktemp("run"), things)


@pytest.fixture
def pool_of(tmp_path: Path) -> Callable[..., Path]:
    def make(
        things: list[Thing],
        metadata: dict[int, dict[str, Any]] | None = None,
        copies: dict[int, tuple[str, int]] | None = None,
    ) -> Path:
        folder = tmp_path / "pool"
        folder.mkdir()
        write_table(things, metadata or {thing.image: {} for thing in things}, folder, "", copies)
        return folder

    return make


def mined(pool: Path, run: Path, *options: str) -> dict[str, Any]:
    out = pool.parent / "out"
    assert main(["mine", str(pool), "--run", str(run), "--out", str(out), *options]) == 0
    content: dict[str, Any] = json.loads((out / "chosen.json").read_text())
    return content


def test_a_weak_class_is_chosen_far_more_often_than_by_chance(pool_of: Callable[..., Path], run: Path) -> None:
    rare = range(0, 100, 10)
    things = [
        Thing("detection", i, 1 if i in rare else 2 * (i % 2), DOUBT, column) for i in range(100) for column in (0, 2)
    ]
    document = mined(pool_of(things), run, "--n", "10")
    chosen = [row["image_id"] for row in document["images"]]
    assert len(set(chosen)) == 10
    assert len(set(chosen) & set(rare)) >= 6  # 1 by chance
    assert document["images"][0]["reason"].startswith("bolt (AP@0.5 0.25 on 40 objects): 2 places")
    bolts = next(mode for mode in document["failure_modes"] if mode["name"].startswith("bolt"))
    assert bolts["by_chance"] == pytest.approx(1.0, abs=0.2)
    assert bolts["objects"] > 5 * bolts["by_chance"]
    assert bolts["cost"] == max(mode["cost"] for mode in document["failure_modes"])


def test_a_weak_slice_is_chosen_far_more_often_than_by_chance(
    pool_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("slice")
    cameras = {image: {"camera": "old" if image % 4 == 0 else "new"} for image in range(IMAGES_OF_RUN)}
    run = write_run(folder, [t for i in cameras for c in range(3) for t in objects(i, c, found=i % 4 != 0)])
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE, **cameras[i]} for i in cameras]
    categories = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(NAMES)]
    (folder / "val.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    old = range(0, 100, 10)
    things = [Thing("detection", i, i % 3, DOUBT, column) for i in range(100) for column in (0, 2)]
    pool = pool_of(things, {i: {"camera": "old" if i in old else "new"} for i in range(100)})
    document = mined(pool, run, "--n", "10", "--data", str(folder / "val.json"))
    assert len({row["image_id"] for row in document["images"]} & set(old)) >= 6
    assert document["images"][0]["reason"].startswith("weak slice camera: old: 2 places")
    assert next(m["name"] for m in document["failure_modes"] if m["kind"] == "slice") == "camera: old"


def test_what_training_has_nothing_for_is_chosen(pool_of: Callable[..., Path], run: Path) -> None:
    like_gap = range(0, 100, 20)
    things = [Thing("detection", i, 0, DOUBT, 0, 7 if i in like_gap else 0) for i in range(100)]
    document = mined(pool_of(things), run, "--n", "5")
    assert document["verdicts"]
    gap = next(mode for mode in document["failure_modes"] if mode["kind"] == "data gap")
    assert gap["objects"] > 4 * gap["by_chance"]
    assert len({row["image_id"] for row in document["images"]} & set(like_gap)) >= 2  # 0.25 by chance; they look alike


def test_a_confused_pair_is_chosen(pool_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    in_run = []
    for image in range(IMAGES_OF_RUN):
        taken = image % 2 == 0  # the nut for a bolt
        for label in (0, 1):
            score = DOUBT if (label == 0) == taken else 0.9
            found = 1 if label == 0 and taken else label
            in_run += [Thing("truth", image, label, None, label), Thing("detection", image, found, score, label)]
    both = range(0, 60, 10)
    things = [
        Thing("detection", i, label, DOUBT, 0) for i in range(60) for label in ((0, 1) if i in both else (i % 2,))
    ]
    document = mined(pool_of(things), write_run(tmp_path_factory.mktemp("pair"), in_run), "--n", "6")
    pair = next(mode for mode in document["failure_modes"] if mode["kind"] == "confusion")
    assert pair["name"] == "nut or bolt"
    assert pair["objects"] > 4 * pair["by_chance"]
    assert "nut or bolt? 1 place" in document["images"][0]["reason"]


def test_images_that_are_nearly_the_same_are_chosen_once(pool_of: Callable[..., Path], run: Path) -> None:
    things = [Thing("detection", i, i % 3, DOUBT, 0) for i in range(40)]
    copies = {i: ("", i % 20) for i in range(20, 40)} | {5: ("train", 3), 6: ("val", 4), 7: ("val", 5)}
    pool = pool_of(things, copies=copies)
    document = mined(pool, run, "--n", "40")
    assert document["left_out"] == {"train": ["5.png"], "val": ["6.png", "7.png"]}
    chosen = [row["image_id"] for row in document["images"]]
    assert sorted(i % 20 for i in chosen) == list(range(20))  # 25 to 27 copy what 5 to 7 would have been
    named = {name for row in document["images"] for name in row["nearly_the_same"]}
    assert len(named) == 17
    assert not named & {f"{i}.png" for i in chosen}


def test_a_choice_is_the_same_again_and_its_beginning_is_one_too(pool_of: Callable[..., Path], run: Path) -> None:
    pool = pool_of([Thing("detection", i, i % 3, 0.1 + 0.007 * i, 0) for i in range(60)])
    first, again, fewer = (
        [row["image_id"] for row in mined(pool, run, "--n", n, "--overwrite")["images"]] for n in ("12", "12", "5")
    )
    assert first == again
    assert len(set(first[:5]) & set(fewer)) >= 3  # they are taken from fewer candidates


def test_what_is_written_goes_on_to_a_labelling_tool(
    pool_of: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    things = [
        Thing("detection", i, i % 3, score, column) for i in range(9) for column, score in enumerate((0.95, 0.06))
    ]
    pool = pool_of(things)
    document = mined(pool, run, "--n", "4", "--json")
    assert json.loads(capsys.readouterr().out) == document
    out = pool.parent / "out"
    reading = read_coco(out / "preannotations.json", pool / "images")
    assert not reading.faults
    assert [(c.id, c.name) for c in reading.index.categories] == [(10, "nut"), (20, "bolt"), (30, "washer")]
    assert list(reading.index.file_names) == [row["file_name"] for row in document["images"]]
    assert reading.index.boxes.tolist() == [[0, 0, 20, 20]] * 4  # of two in each image the one above its threshold
    assert reading.index.labels.tolist() == [row["image_id"] % 3 for row in document["images"]]
    with (out / "chosen.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == list(reading.index.file_names)
    assert [row["reason"] for row in rows] == [row["reason"] for row in document["images"]]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure tabindex") == 4
    assert page.count("data:image/jpeg;base64,") == 4


def test_a_pool_in_which_nothing_is_found_is_chosen_from_too(pool_of: Callable[..., Path], run: Path) -> None:
    pool = pool_of([Thing("detection", 0, 0, 0.06)], {image: {} for image in range(20)})
    assert len(mined(pool, run, "--n", "7")["images"]) == 7


def broken(pool: Path, run: Path, what: str) -> list[str]:
    """Arguments for a wrong use, and the files to it."""
    if what == "no run":
        return [str(pool)]
    if what == "other classes":
        table = pq.read_table(pool / "embeddings.parquet")
        names = pa.array(["screw"] * table.num_rows)
        place = table.schema.get_field_index("class_name")
        pq.write_table(table.set_column(place, "class_name", names), pool / "embeddings.parquet")
    if what == "other checkpoint":
        table = pq.read_table(pool / "image_embeddings.parquet")
        table = table.replace_schema_metadata({CHECKPOINT: "def"})
        pq.write_table(table, pool / "image_embeddings.parquet")
    if what == "no vectors":
        (pool / "embeddings.parquet").unlink()
    if what == "earlier choice":
        (pool / "chosen").mkdir()
        (pool / "chosen" / "chosen.json").write_text("{}")
    if what == "no pool":
        return [str(pool / "nowhere"), "--run", str(run)]
    if what == "no table":
        return [str(pool), "--run", str(pool)]
    return [str(pool), "--run", str(run), "--n", "0" if what == "no images" else "3"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no run", "--run"),
        ("no images", "--n is 0"),
        ("no pool", "--embeddings.write true"),
        ("no vectors", "--embeddings.write true"),
        ("no table", "holds no test_predictions.parquet"),
        ("other classes", "its label 0 is screw; the classes of"),
        ("other checkpoint", "another checkpoint"),
        ("earlier choice", "--overwrite"),
    ],
)
def test_wrong_use_is_a_sentence(
    what: str, words: str, pool_of: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of([Thing("detection", i, i % 3, DOUBT) for i in range(6)])
    assert main(["mine", *broken(pool, run, what)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert not (pool / "chosen" / "chosen.csv").exists()
