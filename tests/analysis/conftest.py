"""A data set that the project draws, and detections on it with mistakes of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detframe.data.synthetic import write_dataset


@pytest.fixture(scope="session")
def detected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """COCO annotations of drawn images, and COCO results on them: near objects, missing some, with strays."""
    folder = tmp_path_factory.mktemp("detected")
    write_dataset(folder, train=2, val=2, test=14)
    truth = json.loads((folder / "test.json").read_text())
    for i, image in enumerate(truth["images"]):
        image["camera"] = "left" if i % 2 else "right"
    (folder / "test.json").write_text(json.dumps(truth))
    rng = np.random.default_rng(0)
    categories = [category["id"] for category in truth["categories"]]
    found = []
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        for _ in range(1 + (rng.random() < 0.2)):
            shift = rng.normal(0, 0.12, 4)
            box = [x + shift[0] * width, y + shift[1] * height, width * np.exp(shift[2]), height * np.exp(shift[3])]
            wrong = rng.random() < 0.2
            category = int(rng.choice(categories)) if wrong else annotation["category_id"]
            if rng.random() < 0.85:
                score = round(float(rng.beta(2, 3) if wrong else rng.beta(4, 2)), 4)
                row = {"image_id": annotation["image_id"], "category_id": category, "bbox": box, "score": score}
                found.append(row)
    for image in truth["images"]:
        for _ in range(3):
            box = [*rng.uniform(0, 0.6, 2) * [image["width"], image["height"]], *rng.uniform(20, 60, 2)]
            score = round(float(rng.beta(2, 5)), 4)
            row = {"image_id": image["id"], "category_id": int(rng.choice(categories)), "bbox": box, "score": score}
            found.append(row)
    (folder / "found.json").write_text(json.dumps(found))
    return folder / "test.json", folder / "found.json"
