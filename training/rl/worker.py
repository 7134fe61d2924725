"""The controller's side of a child: a process, a socket and a thread that waits for it."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from training.rl.wire import pack, unpack

if TYPE_CHECKING:
    from training.rl.protocols import Part
    from training.rl.wire import Arrays

_JOIN_SECONDS = 10.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Event:
    """What a child did.

    Attributes:
        worker: which.
        ticket: of the answered message; None for the first word and for the end.
        head: of the answer; None when the child is gone.
        arrays: of the answer.
    """

    worker: Worker
    ticket: int | None
    head: dict[str, Any] | None
    arrays: Arrays


class Worker:
    """One child process. Its name is its own for ever: the one that takes its place has another.

    Attributes:
        name: for the schedule and for messages.
        role: rollout, reward or learner.
        busy: whether an answer (or the first word) is awaited.
        due: the monotonic time by which it has to come.
        ready: whether it has said its first word.
        pid: of the process.
    """

    def __init__(
        self, name: str, role: str, part: Part, common: dict[str, Any], events: queue.Queue[Event], seconds: float
    ) -> None:
        self.name = name
        self.role = role
        self.busy = True
        self.ready = False
        self.due = time.monotonic() + seconds
        self._events = events
        self._tasks: queue.Queue[tuple[int, bytes] | None] = queue.Queue()
        settings = json.dumps({**common, "factory": part.factory, "options": {**part.options, **part.local}})
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, **dict.fromkeys(_THREADS, str(part.threads))}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module and settings
                [sys.executable, "-m", "training.rl.process", role, settings, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self.pid = self._process.pid
        self._connection = Connection(ours.detach())
        self._thread = threading.Thread(target=self._talk, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, ticket: int, head: dict[str, Any], arrays: Arrays, seconds: float) -> None:
        """Give the child its next task; the answer comes as an event within `seconds` or is overdue."""
        self.busy = True
        self.due = time.monotonic() + seconds
        self._tasks.put((ticket, pack(head, arrays)))

    def stop(self) -> None:
        """End the process, whatever it does, and wait for it."""
        self._process.kill()
        self._process.wait()
        self._tasks.put(None)
        self._thread.join(_JOIN_SECONDS)

    def _talk(self) -> None:
        """Blocks in the socket so that the controller never does."""
        with self._connection as connection:
            try:
                self._events.put(Event(self, None, *unpack(connection.recv_bytes())))
                while (task := self._tasks.get()) is not None:
                    connection.send_bytes(task[1])
                    self._events.put(Event(self, task[0], *unpack(connection.recv_bytes())))
            except (EOFError, OSError):
                self._events.put(Event(self, None, None, {}))
