"""A server whose knee is known: one request after the other, each takes the same time, which is waited and not worked.

It runs as a process of its own (`Stub`), so that it can be frozen.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, cast

import httptools

if TYPE_CHECKING:
    from types import TracebackType

_BODY: Final = (
    b'{"request_id":"stub","served_by":"nezha","decoder":"nezha","bundle_version":"stub","catalog_version":"stub.0",'
    b'"arms":{},"truncated":false,"items":[{"item_id":"i1","position":0,"score":-1.0,"source":"nezha"}],'
    b'"counts":{"requested":1,"returned":1,"history":0,"history_unknown":0,"history_cut":0,"filter_unknown":0}}'
)
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY), _BODY,
)  # fmt: skip
_PR_SET_PDEATHSIG: Final = 1
_BACKLOG: Final = 1024


class _Queue:
    """When the one worker of this server is free."""

    def __init__(self, service_seconds: float) -> None:
        self._service = service_seconds
        self._free_at = 0.0

    def book(self) -> float:
        """Seconds until a request that comes now is done."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + self._service
        return self._free_at - now


class _Served(asyncio.Protocol):
    def __init__(self, queue: _Queue) -> None:
        self._queue = queue
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        asyncio.get_running_loop().call_later(self._queue.book(), self._answer)

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_ANSWER)


async def _serve(listening: socket.socket, service_seconds: float) -> None:
    queue = _Queue(service_seconds)
    server = await asyncio.get_running_loop().create_server(lambda: _Served(queue), sock=listening)
    async with server:
        await server.serve_forever()


class Stub:
    """The stub as a child process on a free port of 127.0.0.1; ends with its block.

    Args:
        service_seconds: per request; at most 1 / service_seconds requests are answered in a second.
    """

    def __init__(self, service_seconds: float) -> None:
        self._service = service_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listening:
            number = listening.fileno()
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            call = [sys.executable, "-m", "loadtest.stub", "--socket", str(number), "--service", str(self._service)]
            place = Path(__file__).resolve().parent.parent
            self._process = subprocess.Popen(call, pass_fds=[number], cwd=place)  # noqa: S603
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the stub does not run")
        self._process.send_signal(number)


def main() -> None:
    """Serve on a socket that was handed over until killed."""
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True, help="number of the listening socket")
    parser.add_argument("--service", type=float, required=True, help="seconds per request")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a frozen one would outlive its parent for ever
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=given.socket), given.service))


if __name__ == "__main__":
    main()
