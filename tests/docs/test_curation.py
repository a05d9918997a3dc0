"""docs/curation.md does what it says: its commands run as they stand there."""

import re
from pathlib import Path

import pytest
from tests.curation.conftest import indices, labels, save_fixes, write_coco_set
from tests.curation.test_apply import five
from tests.curation.test_handover import cvat_export, suggestions_of

from detframe.cli import main
from detframe.data.label_queue import Queue, write_queue

PAGE = Path(__file__).parents[2] / "docs" / "curation.md"
CODES = {"apply": 0, "data-diff": 1, "hand-over": 0, "take-back": 0}


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_coco_set(Path("my/data"))
    save_fixes(Path("fixes.jsonl"), *five(data))
    index = indices(data)["train"]
    queue = Queue(str(data), "train", index.annotations_hash(), index.class_names, suggestions_of(data))
    write_queue(queue, Path("queue.jsonl"))
    lines = re.findall(r"^    python -m detframe ([^#\n]*)", PAGE.read_text(), re.M)
    commands = [line.split() for line in lines if line.split()[0] in CODES]
    assert [command[0] for command in commands] == ["apply", "data-diff", "apply", "hand-over", "take-back"]
    for command in commands:
        if command[0] == "take-back":
            cvat_export(Path("sent").absolute())  # leaves export.zip beside it
        assert main(command) == CODES[command[0]], command
    assert labels(Path("my/data-v2")) != labels(data)
    assert Path("difference/index.html").is_file()
