"""The verb ``review``: decide about each suggestion of a queue on a page in the browser."""

from __future__ import annotations

import getpass
import os
import secrets
import sys
import threading
import webbrowser
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from shlex import quote

from rich.console import Console

from detframe.curation.fixes import DECISIONS, NOBODY, Fix, disagreements, standing
from detframe.curation.review.server import ReviewServer
from detframe.curation.review.session import Session, open_session
from detframe.data.annotations import DataError
from detframe.listing import in_a_row
from detframe.refusals import refuse


def review(
    queue: Path,
    out: Path | None = None,
    data: Path | None = None,
    who: str | None = None,
    port: int = 0,
    no_browser: bool = False,
) -> int:
    """Look at each suggestion of QUEUE on a page in the browser, and decide with one key.

    The page shows the object in its image, the label in question and the suggested one: A accepts, R rejects, E edits,
    M makes an ignore box of what is ambiguous, S leaves it for later, U takes the last decision back, ? shows all keys.
    Each decision is added to OUT as it is made, so that nothing is lost however the review ends; the next one begins
    where it ended. The data set is not touched: `detframe apply` writes a mended copy.

    The page is served on 127.0.0.1 alone, at an address with a token that nobody else has. Nothing is sent elsewhere.

    Exit code: 0 when the review was ended with Ctrl-C; 2 when QUEUE or the data set cannot be read, or the labels are
    not those that QUEUE was made from.

    Args:
        queue: What `detframe label-errors` wrote.
        out: File that decisions are added to; by default fixes.jsonl beside QUEUE.
        data: The data set, where it is no longer at the place that QUEUE names.
        who: Name of the reviewer in OUT; by default that of the login.
        port: To serve the page at; 0 takes a free one.
        no_browser: Print the address and open no browser.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        session = open_session(queue, data, out or queue.parent / "fixes.jsonl", _reviewer(who))
        server = _listen(session, port)
    except DataError as error:
        return refuse(error)
    with server:
        try:
            _print_greeting(console, session)
            console.print(server.url)
            console.print("Every decision is saved as it is made. Ctrl-C ends the review.")
            if not no_browser and _has_screen():
                threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
    try:
        _print_summary(console, session)
    except DataError as error:  # somebody else wrote into the file meanwhile
        return refuse(error)
    return 0


def _reviewer(who: str | None) -> str:
    """The reviewer's name.

    Raises:
        DataError: It is empty, or the one that stands for nobody.
    """
    if who is None:
        try:
            return getpass.getuser()
        except (KeyError, OSError) as error:
            raise DataError("The login has no name. Say with --who whose decisions these are.") from error
    if not who.strip() or who == NOBODY:
        raise DataError(f"--who is {who!r}; name the person who decides ({NOBODY} stands for nobody).")
    return who.strip()


def _listen(session: Session, port: int) -> ReviewServer:
    """A server that listens.

    Raises:
        DataError: The port cannot be had.
    """
    try:
        return ReviewServer(session, secrets.token_urlsafe(), port)
    except (OSError, OverflowError) as error:
        raise DataError(f"--port {port}: cannot be had ({error}). Leave --port out to take a free one.") from error


def _has_screen() -> bool:
    """Whether a browser would open a window; without one, some take over the terminal."""
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _print_greeting(console: Console, session: Session) -> None:
    queue, fixes = session.queue, session.fixes()
    console.print(
        f"{len(queue.suggestions)} suggestions about {queue.split} of {queue.data}, "
        f"{_done(session, fixes)} of them decided in {session.out}"
    )
    _print_disagreements(console, fixes)


def _print_summary(console: Console, session: Session) -> None:
    fixes = session.fixes()
    total, done = len(session.queue.suggestions), _done(session, fixes)
    console.print(f"{session.who}, this time: {_counted(standing(session.made).values())}")
    console.print(f"In all: {done} of {total} decided, {total - done} left; {_counted(standing(fixes).values())}")
    _print_disagreements(console, fixes)
    if fixes:
        console.print(f"Decisions are in {session.out}. Next, write a mended copy of the data set:")
        console.print(f"  detframe apply {quote(str(session.out))} --data {quote(session.queue.data)} --out NEW")


def _done(session: Session, fixes: Iterable[Fix]) -> int:
    """Suggestions with a decision that stands; what was left for later has none."""
    decided = {identity for identity, fix in standing(fixes).items() if fix.decision != "skip"}
    return sum(suggestion.id in decided for suggestion in session.queue.suggestions)


def _counted(fixes: Iterable[Fix]) -> str:
    counts = Counter(fix.decision for fix in fixes)
    return ", ".join(f"{counts[decision]} {decision}" for decision in DECISIONS if counts[decision]) or "no decision"


def _print_disagreements(console: Console, fixes: Iterable[Fix]) -> None:
    pairs = disagreements(fixes)
    if not pairs:
        return
    people = sorted({fix.who for pair in pairs for fix in pair})
    named = [f"{one.id} ({one.who} {one.decision}, {other.who} {other.decision})" for one, other in pairs]
    noun = "suggestion" if len(pairs) == 1 else "suggestions"
    console.print(
        f"{' and '.join(people)} disagree about {len(pairs)} {noun}; let one of them decide again, as `detframe apply` "
        f"follows the last decision with --latest_wins alone: {in_a_row(named)}"
    )
