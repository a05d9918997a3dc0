from __future__ import annotations

import json
from pathlib import Path

import pytest

from detframe.refusals import refuse
from detframe.unfinished import unfinished


def test_a_file_is_replaced_when_all_went_well_and_left_alone_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with unfinished(path) as beside:
        beside.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyError):
        _fail_halfway(path)
    assert path.read_text() == "one"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def _fail_halfway(path: Path) -> None:
    with unfinished(path) as beside:
        beside.write_text("two")
        raise KeyError


def test_what_a_killed_run_left_of_a_folder_goes(tmp_path: Path) -> None:
    left = tmp_path / "folder.unfinished"
    left.mkdir()
    (left / "old").touch()
    with unfinished(tmp_path / "folder") as beside:
        assert beside == left
        beside.mkdir()
        (beside / "new").touch()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new"]
    assert not left.exists()


def test_a_refusal_is_where_it_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse(ValueError("x.json: is empty.")) == 2
    assert capsys.readouterr() == ("", "x.json: is empty.\n")
    assert refuse(ValueError("x.json: is empty."), json=True, facts={"data": "x"}) == 2
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"data": "x", "error": "x.json: is empty."}, "")


def test_an_error_of_the_file_system_is_a_sentence_and_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    said = "in: cannot be read or written (Permission denied). Correct that, or name another place."
    assert refuse(PermissionError(13, "Permission denied", "in"), out=Path("out")) == 2
    assert capsys.readouterr() == ("", f"{said}\n")
    assert refuse(OSError(28, "No space left on device"), json=True, facts={"data": "x"}, out=Path("out")) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"].startswith("out: cannot be read or written (No space left on device).")
    assert (json.loads(out)["data"], err) == ("x", "")
    assert refuse(OSError("is no picture"), out=Path("out")) == 2  # as libraries raise it, without a number
    assert capsys.readouterr().err == "is no picture\n"
