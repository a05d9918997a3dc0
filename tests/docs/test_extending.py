"""docs/extending.md does what it says: its files are written as they stand there and its commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detframe.data.synthetic import write_dataset

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_trains_tests_and_exports_a_head_from_outside(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    for name, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(text)
    (tmp_path / "quickstart.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    write_dataset(tmp_path / "datasets" / "quickstart", train=16, val=4, test=4)
    commands = re.findall(r"^python -m detframe .*", page, re.M)
    assert [command.split()[3] for command in commands] == ["fit", "test", "export", "export"]
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    small = ["--data.synthetic", "false", "--trainer.check_val_every_n_epoch", "1"]
    for command in commands:
        words = command.split()[1:]
        assert "mAP" in run(*words, *([] if "export" in words else small))
    ours = tmp_path / "runs" / "quickstart" / "version_0"
    assert (ours / "test_metrics.json").is_file()
    assert (ours / "export" / "model.torchscript").is_file()
    assert (ours / "export" / "model.pt2").is_file()
