"""What `benchmark` compares, each in a process of its own: its memory is its own, and so are its threads."""

from __future__ import annotations

import signal
import time
import warnings
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

from detframe.export.runtime import Answer, ArtefactError, Images, Run, load, reason

How = Literal["artefact", "eager", "channels_last", "compiled"]


class Contestant(NamedTuple):
    """An artefact, or a checkpoint in one of the ways in which torch runs it."""

    path: Path
    how: How


class About(NamedTuple):
    """What a contestant says of itself."""

    class_names: list[str]
    image_size: tuple[int, int]  # (height, width) of the network's input


class _Fault(NamedTuple):
    message: str


class Running:
    """A contestant that has been loaded."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        """Start its process and load it.

        Args:
            contestant: What is loaded.
            threads: Of the CPU.

        Raises:
            ArtefactError: It cannot be loaded.
        """
        self.contestant = contestant
        context = get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_work, args=(far, contestant, threads), daemon=True)
        self._process.start()
        far.close()
        self.about: About = self._answer()

    def __enter__(self) -> Running:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End its process."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()

    def answer(self, images: Images) -> Answer:
        """What it finds; the images stay there for :meth:`milliseconds`."""
        self._pipe.send(images)
        answer: Answer = self._answer()
        return answer

    def milliseconds(self) -> float:
        """Time of one call with the last images."""
        self._pipe.send("time")
        return float(self._answer())

    def peak_megabytes(self) -> float | None:
        """The most memory that its process has had, libraries and all; None where the system does not say."""
        self._pipe.send("memory")
        found: float | None = self._answer()
        return found

    def _answer(self) -> Any:  # noqa: ANN401 - what was asked for
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ArtefactError(
                f"{self.contestant.path}: its process ended without a word, perhaps for want of memory."
            ) from error
        if isinstance(answer, _Fault):
            raise ArtefactError(answer.message)
        return answer


def _work(pipe: Connection, contestant: Contestant, threads: int) -> None:
    """Load a contestant and do what the pipe says until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the first process, which closes the pipe
    warnings.simplefilter("ignore")
    images: Images = np.zeros((1, 3, 1, 1), np.uint8)
    try:
        run, about = _loaded(contestant, threads)
        pipe.send(about)
        while True:
            asked = pipe.recv()
            if isinstance(asked, np.ndarray):
                images = asked
                pipe.send(run(images))
            elif asked == "time":
                started = time.perf_counter()
                run(images)
                pipe.send(1000 * (time.perf_counter() - started))
            else:
                pipe.send(_peak_megabytes())
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # each runtime has its own
        said = str(error).strip().partition("\n")[0]
        named = str(contestant.path) in said
        pipe.send(_Fault(said if named else f"{contestant.path}: cannot run as {contestant.how} ({reason(error)})."))


def _loaded(contestant: Contestant, threads: int) -> tuple[Run, About]:
    if contestant.how == "artefact":
        artefact = load(contestant.path, threads)
        return artefact.run, About(artefact.metadata.class_names, artefact.metadata.image_size)
    import torch

    from detframe.export.checkpoint import answering, artefact_of, read_checkpoint

    torch.set_num_threads(threads)
    task = read_checkpoint(contestant.path)
    artefact_ = artefact_of(task, [0.0] * len(task.class_names))
    if contestant.how == "channels_last":
        artefact_.detector.to(memory_format=torch.channels_last)
    if contestant.how == "compiled":  # not the rest: it would be compiled anew for each number of candidates
        for name in ("backbone", "neck"):
            getattr(artefact_.detector, name).compile(dynamic=False)
    return answering(artefact_), About(task.class_names, (artefact_.height, artefact_.width))


def _peak_megabytes() -> float | None:
    """The highest resident memory of this process alone: `getrusage` counts what its parent had at the fork."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(float(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmHWM"))
