"""A socket, and uvicorn behind it, which says when it listens and loses nothing when it stops."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from detframe.serving.gate import Gate
from detframe.serving.limits import StartError

_SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it

_ACCEPT_SECONDS = 0.05
"""For connections to be accepted that were made before a stop."""

_LEAVE_SECONDS = 0.5
"""Between the last new connection and the end of idle ones: requests that are on their way are read."""


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket with an address, which does not listen yet: who connects before the workers are ready is refused.

    Args:
        host: Name or address.
        port: 0 takes a free one.

    Raises:
        StartError: The address cannot be had.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise StartError(
            f"--host {host} --port {port}: cannot be had ({error}); name another, or --port 0 for a free one."
        ) from error
    with listener:
        yield listener


def url(listener: socket.socket) -> str:
    """The address of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def listen(listener: socket.socket, gate: Gate, ready: Callable[[], None], patience: int) -> None:
    """Serve until SIGTERM or SIGINT; what has been taken by then is answered first.

    Args:
        listener: A bound socket.
        gate: What answers.
        ready: Called once it listens.
        patience: Seconds that a stop waits for answers.
    """
    config = uvicorn.Config(
        gate,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=patience,
    )
    _Server(config, gate, ready).run([listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gate: Gate, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._gate = gate
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, finish what is inside, and end.

        uvicorn would reset connections that it has not accepted yet, and close those whose request it has not read.
        """
        self._gate.stopping = True
        for listener in sockets or []:
            _deafen(listener)
        await asyncio.sleep(_ACCEPT_SECONDS)
        for listening in self.servers:
            listening.close()
        for listener in sockets or []:
            listener.close()
        await asyncio.sleep(_LEAVE_SECONDS)
        await super().shutdown(sockets)


def _deafen(listener: socket.socket) -> None:
    """Let a listening socket take nobody new, while who is in its queue can still be accepted.

    There is no call for that: closing it resets its queue. Where Linux drops what comes, clients try again, and are
    refused once it is closed; elsewhere a connection of the last moment may be reset.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # in classic BPF: return 0, drop it
    with suppress(OSError):  # not every sandbox lets filters be set
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
