"""What the review answers, and what each decision leaves in the file, without a socket or a browser."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detframe.cli import main
from detframe.curation import mending
from detframe.curation.fixes import append_fix, read_fixes, standing
from detframe.curation.review.routes import MOST_BYTES, Request, Response, respond
from detframe.curation.review.server import ReviewServer
from detframe.curation.review.session import Session, open_session
from detframe.data.annotations import DataError
from detframe.data.label_queue import Label, Queue, Suggestion, read_queue, suggestion_id, write_queue
from detframe.data.sources import read_split

TOKEN = "t0ken"
NUT = Label((4.0, 5.0, 24.0, 25.0), "nut")
BOLT = Label((30.0, 8.0, 50.0, 40.0), "bolt")
TWIN = Label((30.0, 8.0, 50.0, 40.0), "bolt", ignore=True)
SUGGESTED = {
    "wrong-class": (0, NUT, NUT._replace(class_name="bolt")),
    "bad-box": (0, BOLT, BOLT._replace(box=(29.0, 8.0, 51.0, 40.0))),
    "missing": (1, None, Label((1.0, 2.0, 11.5, 12.25), "nut")),
    "spurious": (2, NUT, None),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A colour PNG with a nut and two bolts, a grey TIFF of 16 bits without objects, and a JPEG with a nut."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "images" / "a.png")
    Image.fromarray(np.full((20, 30), 257 * 100, dtype=np.uint16)).save(folder / "images" / "b.tif")
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "images" / "c.jpg")
    labels = [(1, NUT), (1, BOLT), (1, TWIN), (3, NUT)]
    content = {
        "images": [
            {"id": i + 1, "file_name": name, "width": size[0], "height": size[1]}
            for i, (name, size) in enumerate({"a.png": (64, 48), "b.tif": (30, 20), "c.jpg": (64, 48)}.items())
        ],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": image,
                "category_id": ["nut", "bolt"].index(label.class_name),
                "bbox": [*label.box[:2], label.box[2] - label.box[0], label.box[3] - label.box[1]],
                "iscrowd": int(label.ignore),
            }
            for i, (image, label) in enumerate(labels)
        ],
        "categories": [{"id": 0, "name": "nut"}, {"id": 1, "name": "bolt"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def queue(data: Path) -> Path:
    """A suggestion of each of four kinds; that of kind "missing" has the id "missing"."""
    index = read_split(data, "train")
    ids = {("a.png", "nut"): 10, ("a.png", "bolt"): 11, ("c.jpg", "nut"): 13}
    suggestions = []
    for kind, (image, before, after) in SUGGESTED.items():
        name = index.file_names[image]
        number = None if before is None else ids[name, before.class_name]
        suggestions.append(
            Suggestion(kind, kind, image + 1, name, number, before, after, 0.75, 1.5, "by design")  # type: ignore[arg-type]
        )
    path = data.parent / "queue.jsonl"
    write_queue(Queue(str(data), "train", index.annotations_hash(), ["nut", "bolt"], suggestions), path)
    return path


@pytest.fixture
def session(queue: Path) -> Session:
    return open_session(queue, None, queue.parent / "fixes.jsonl", "ada")


def get(session: Session, path: str, host: str = "127.0.0.1:80") -> Response:
    return respond(session, TOKEN, Request("GET", path, host))


def post(session: Session, path: str, body: bytes, content_type: str = "application/json") -> Response:
    return respond(session, TOKEN, Request("POST", path, "127.0.0.1:80", content_type, body))


def decide(session: Session, identity: str, decision: str, label: dict[str, Any] | None = None) -> Response:
    body = json.dumps({"id": identity, "decision": decision, "label": label}).encode()
    return post(session, f"/{TOKEN}/decisions", body)


def state_of(session: Session) -> dict[str, Any]:
    return dict(json.loads(get(session, f"/{TOKEN}/state").body))


def test_nothing_is_answered_without_the_token(session: Session) -> None:
    for path in ("/", "/state", "/nope/", "/nope/state", "//state", f"/{TOKEN}x/", f"/x?{TOKEN}", f"/é/{TOKEN}/"):
        assert get(session, path).status == 403, path
    body = b'{"id": "missing", "decision": "accept"}'
    assert post(session, "/nope/decisions", body).status == 403
    assert get(session, f"/{TOKEN}/").status == get(session, f"/{TOKEN}").status == 200
    assert not session.out.exists()


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:80:80"])
def test_a_name_that_was_made_to_lead_here_is_refused(session: Session, host: str) -> None:
    assert get(session, f"/{TOKEN}/", host=host).status == 403
    assert get(session, f"/{TOKEN}/", host="localhost:5000").status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("../../etc/passwd", "images/../train.json", "images/a.png", "images/%2e%2e%2ftrain.json", "images/3"),
        *("images/-1", "images/", "images/²", "images/99999999999999999999", "images/0/1", "labels/3", "routes.py"),
    ],
)
def test_no_path_leads_outside(session: Session, path: str) -> None:
    assert get(session, f"/{TOKEN}/{path}").status == 404


def test_images_are_sent_as_they_are_or_as_the_reader_has_them(session: Session, data: Path) -> None:
    for position, (name, kind) in enumerate({"a.png": "image/png", "b.tif": "", "c.jpg": "image/jpeg"}.items()):
        response = get(session, f"/{TOKEN}/images/{position}")
        assert response.status == 200
        if kind:
            assert response[1:] == (kind, (data / "images" / name).read_bytes())
        else:
            assert response.content_type == "image/png"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.body))), np.full((20, 30, 3), 100))
    (data / "images" / "b.tif").write_bytes(b"root:x:0:0:root:/root:/bin/bash\n")  # what is no image is not sent
    response = get(session, f"/{TOKEN}/images/1")
    assert response.status == 409
    assert "b.tif: not an image" in json.loads(response.body)["error"]


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(session: Session) -> None:
    page = get(session, f"/{TOKEN}/").body.decode()
    assert not re.findall(r"https?://|<script src|<link rel=.stylesheet|@import|url\(", page)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"id": "missing"', 400),
        (b'{"id": "missing", "decision": "perhaps"}', 400),
        (b'{"id": "missing", "decision": []}', 400),
        (b'{"id": 7, "decision": "accept"}', 400),
        (b'{"id": "unknown", "decision": "accept"}', 404),
        (b'{"id": "missing", "decision": "edit"}', 400),
        (b'{"id": "missing", "decision": "edit", "label": {"box": [1, 2, 3], "class_name": "nut"}}', 400),
        (b'{"id": "missing", "decision": "edit", "label": {"box": [1, 2, 9, 9], "class_name": "gear"}}', 400),
        (b'{"id": "missing", "decision": "edit", "label": {"box": [1, 2, NaN, 9], "class_name": "nut"}}', 400),
        (b'{"id": "missing", "decision": "edit", "label": {"box": [9, 2, 1, 9], "class_name": "nut"}}', 400),
        (b'{"id": "missing", "decision": "edit", "label": {"box": [90, 2, 99, 9], "class_name": "nut"}}', 400),
        (b"[" * 50_000, 400),
    ],
)
def test_a_malformed_decision_writes_nothing(session: Session, body: bytes, status: int) -> None:
    response = post(session, f"/{TOKEN}/decisions", body)
    assert response.status == status
    assert json.loads(response.body)["error"]
    assert not session.out.exists()


def test_a_decision_comes_by_post_and_as_json(session: Session) -> None:
    body = b'{"id": "missing", "decision": "accept"}'
    assert get(session, f"/{TOKEN}/decisions").status == 405
    assert post(session, f"/{TOKEN}/decisions", body, "text/plain").status == 415
    assert post(session, f"/{TOKEN}/state", body).status == 405
    assert not session.out.exists()


def test_each_decision_says_what_becomes_of_the_label(session: Session, data: Path) -> None:
    drawn = {"box": [2.0, 3.0, 70.0, 20.5], "class_name": "bolt"}  # reaches out of the image, which is 64 px wide
    expected = [
        ("wrong-class", "accept", None, NUT._replace(class_name="bolt")),
        ("wrong-class", "reject", None, NUT),
        ("bad-box", "edit", drawn, Label((2.0, 3.0, 64.0, 20.5), "bolt")),
        ("bad-box", "ambiguous", None, BOLT._replace(ignore=True)),
        ("spurious", "ambiguous", drawn, Label((2.0, 3.0, 64.0, 20.5), "bolt", ignore=True)),
        ("spurious", "accept", None, None),
        ("spurious", "skip", None, NUT),
        ("missing", "reject", None, None),
        ("missing", "ambiguous", None, Label((1.0, 2.0, 11.5, 12.25), "nut", ignore=True)),
        ("missing", "accept", None, Label((1.0, 2.0, 11.5, 12.25), "nut")),
        ("missing", "undo", None, None),
    ]
    for identity, decision, label, _ in expected:
        assert decide(session, identity, decision, label).status == 200
    fixes = read_fixes([session.out])
    assert [(fix.id, fix.decision, fix.after) for fix in fixes] == [(i, d, after) for i, d, _, after in expected]
    first = fixes[0]
    digest = hashlib.sha256((data / "images" / "a.png").read_bytes()).hexdigest()
    assert (first.who, first.split, first.file_name, first.image_sha256) == ("ada", "train", "a.png", digest)
    assert (first.annotation_id, first.before, first.reason, first.probability) == (10, NUT, "by design", 0.75)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.when)
    assert [fix.before for fix in fixes if fix.id == "missing"] == [None] * 4


def test_time_does_not_run_backwards_in_a_file(session: Session) -> None:
    decide(session, "missing", "accept")
    session.made[-1] = session.made[-1]._replace(when="2999-01-01T00:00:00.000+00:00")
    decide(session, "missing", "undo")
    assert session.made[-1].when == "2999-01-01T00:00:00.000+00:00"
    assert standing(session.made) == {}


def test_an_image_that_is_gone_stops_the_decision(session: Session, data: Path) -> None:
    (data / "images" / "c.jpg").unlink()
    response = decide(session, "spurious", "accept")
    assert response.status == 409
    assert (
        "c.jpg: cannot be read (No such file or directory). Put the image back." in json.loads(response.body)["error"]
    )
    assert not session.out.exists()


def test_a_file_that_cannot_be_written_is_no_success(session: Session) -> None:
    session.out.mkdir()
    assert decide(session, "spurious", "accept").status == 507
    assert session.made == []


def test_the_page_begins_with_what_was_decided(queue: Path, session: Session) -> None:
    for identity, decision in [("missing", "accept"), ("spurious", "reject"), ("bad-box", "skip")]:
        decide(session, identity, decision)
    decide(session, "spurious", "undo")
    with session.out.open("ab") as file:
        file.write(b'{"id": "wrong-class", "decision": "acc')  # killed while it wrote
    state = state_of(open_session(queue, None, session.out, "ada"))
    assert {identity: row["decision"] for identity, row in state["decisions"].items()} == {
        "missing": "accept",
        "bad-box": "skip",
    }
    assert state["mine"] == ["missing", "bad-box"]
    assert [row["id"] for row in state["suggestions"]] == list(SUGGESTED)
    assert [(row["image"], row["row"]) for row in state["suggestions"]] == [(0, 0), (0, 1), (1, None), (2, 0)]
    labels = json.loads(get(session, f"/{TOKEN}/labels/0").body)
    assert [(row["class_name"], row["ignore"]) for row in labels] == [("nut", False), ("bolt", False), ("bolt", True)]


def test_two_people_share_a_file_and_their_disagreement_is_known(queue: Path, session: Session) -> None:
    other = open_session(queue, None, session.out, "bob")
    decide(session, "missing", "accept")
    decide(other, "missing", "reject")
    decide(other, "spurious", "accept")
    state = state_of(session)
    assert {identity: row["who"] for identity, row in state["decisions"].items()} == {
        "missing": "bob",
        "spurious": "bob",
    }
    assert {(row["id"], row["who"], row["decision"]) for row in state["others"]} == {
        ("missing", "bob", "reject"),
        ("spurious", "bob", "accept"),
    }
    assert state["mine"] == []  # what bob decided last is his to take back


def test_after_undo_the_page_says_what_apply_follows(session: Session, queue: Path) -> None:
    other = open_session(queue, None, session.out, "bob")
    decide(session, "missing", "accept")
    decide(other, "missing", "reject")
    decide(other, "missing", "undo")
    (followed,) = mending.decided(read_fixes([session.out]), latest_wins=False)
    assert (followed.who, followed.decision) == ("ada", "accept")
    said = state_of(other)["decisions"]["missing"]
    assert (said["who"], said["decision"]) == ("ada", "accept")
    assert state_of(session)["mine"] == ["missing"]


def test_many_threads_write_whole_lines(session: Session) -> None:
    threads = [
        threading.Thread(target=decide, args=(session, identity, decision))
        for identity in SUGGESTED
        for decision in ("accept", "reject", "skip")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_fixes([session.out])) == len(threads)


def test_a_queue_of_other_labels_is_refused(queue: Path, data: Path) -> None:
    out = queue.parent / "fixes.jsonl"
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; .*queue.jsonl is about it. Say with --data"):
        open_session(queue, queue.parent / "nowhere", out, "ada")
    read = read_queue(queue)
    write_queue(read._replace(suggestions=[read.suggestions[0]._replace(file_name="z.png")]), queue)
    with pytest.raises(DataError, match=r"suggestion wrong-class is about z.png, which the data set does"):
        open_session(queue, None, out, "ada")
    write_queue(read._replace(suggestions=[read.suggestions[0]._replace(before=BOLT, file_name="c.jpg")]), queue)
    with pytest.raises(DataError, match=r"is about label 10 of c.jpg, which the data set does not have"):
        open_session(queue, None, out, "ada")
    write_queue(read, queue)
    content = json.loads((data / "train.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (data / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the labels of train are not those that .* Take the data set as it was then"):
        open_session(queue, None, out, "ada")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["{queue}", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["{queue}", "--who", " "], "--who is ' '; name the person who decides"),
        (["{queue}", "--who", "detframe"], "detframe stands for nobody"),
        (["{queue}", "--port", "99999"], "--port 99999: cannot be had"),
        (["{queue}", "--out", "{data}/train.json"], "train.json"),
    ],
)
def test_what_cannot_be_reviewed_is_said_in_a_sentence(
    queue: Path, data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(queue=queue, data=data) for argument in arguments]
    assert main(["review", *given, "--no_browser"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture
def served(session: Session) -> Iterator[ReviewServer]:
    with ReviewServer(session, TOKEN, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_socket_is_of_this_machine_and_hides_what_it_is(served: ReviewServer, session: Session) -> None:
    assert served.server_address[0] == "127.0.0.1"
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=10)
    connection.request("GET", f"/{TOKEN}/")
    answer = connection.getresponse()
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Python" not in answer.headers["Server"]
    assert b"<title>detframe review" in answer.read()
    connection.request("GET", "/", headers={"Host": "evil.example"})  # over the same connection
    answer = connection.getresponse()
    assert (answer.status, b"token" in answer.read()) == (403, False)
    connection.request("POST", f"/{TOKEN}/decisions", body=b" " * (MOST_BYTES + 1))
    assert connection.getresponse().status == 413
    connection.close()
    assert not session.out.exists()


class Command:
    """The verb in a process of its own, as a person starts it."""

    def __init__(self, queue: Path, who: str) -> None:
        command = [sys.executable, "-W", "ignore", "-u", "-m", "detframe", "review", str(queue), "--no_browser"]
        self.process = subprocess.Popen(
            [*command, "--who", who], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        url = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{20,})/\n", self.process.stdout.readline())
        assert url
        self.port, self.token = int(url[1]), url[2]

    def decide(self, *decisions: tuple[str, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        for identity, decision in decisions:
            body = json.dumps({"id": identity, "decision": decision})
            connection.request("POST", f"/{self.token}/decisions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["id"]) == (200, identity)
        connection.close()

    def end(self, by: signal.Signals) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        self.process.send_signal(by)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


def test_ctrl_c_ends_with_a_summary(queue: Path, data: Path) -> None:
    fixes = queue.parent / "fixes.jsonl"
    decide(open_session(queue, None, fixes, "bob"), "missing", "reject")
    command = Command(queue, "ada")
    assert command.greeting == f"4 suggestions about train of {data}, 1 of them decided in {fixes}\n"
    command.decide(("missing", "accept"), ("spurious", "accept"), ("bad-box", "skip"))
    code, out, err = command.end(signal.SIGINT)
    assert (code, err) == (0, "")
    assert "ada, this time: 2 accept, 1 skip\nIn all: 2 of 4 decided, 2 left; 2 accept, 1 skip\n" in out
    assert "ada and bob disagree about 1 suggestion; let one of them decide again, as `detframe apply` " in out
    assert "missing (bob reject, ada accept)" in out
    assert f"  detframe apply {fixes} --data {data} --out NEW\n" in out


def test_to_kill_it_loses_nothing(queue: Path) -> None:
    command = Command(queue, "ada")
    command.decide(("missing", "accept"), ("spurious", "reject"))
    assert command.end(signal.SIGKILL)[0] == -signal.SIGKILL
    fixes = read_fixes([queue.parent / "fixes.jsonl"])
    assert [(fix.id, fix.decision) for fix in fixes] == [("missing", "accept"), ("spurious", "reject")]


def test_two_files_that_agree_merge(queue: Path, session: Session) -> None:
    other = open_session(queue, None, queue.parent / "bob.jsonl", "bob")
    decide(session, "missing", "accept")
    decide(other, "spurious", "accept")
    merged = standing(read_fixes([session.out, other.out]))
    assert {identity: fix.who for identity, fix in merged.items()} == {"missing": "ada", "spurious": "bob"}
    joined = queue.parent / "joined.jsonl"
    joined.write_bytes(other.out.read_bytes() + session.out.read_bytes())
    assert standing(read_fixes([joined])) == merged


def test_a_decision_about_another_queue_is_left_alone(queue: Path, session: Session) -> None:
    decide(session, "missing", "accept")
    foreign = session.made[0]._replace(id=suggestion_id("missing", "z.png", None, NUT))
    append_fix(foreign, session.out)
    assert [fix.id for fix in session.fixes()] == ["missing"]
    assert list(state_of(session)["decisions"]) == ["missing"]
