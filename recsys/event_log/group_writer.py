"""One thread that writes what has gathered: many callers share one flush to the disk."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
R = TypeVar("R")


class GroupWriter(Generic[T, R]):
    """Hands what was submitted to `write`, everything that waits in one call, in the order of submission.

    Args:
        name: of the thread, which begins with the first element.
        write: writes a group durably; one result per element. What it raises goes to every caller of the group.
        limit: elements that may wait; None = any number.
        linger: seconds to gather before writing; 0 writes at once what gathered during the write before.
    """

    def __init__(
        self, name: str, write: Callable[[list[T]], list[R]], *, limit: int | None = None, linger: float = 0.0
    ) -> None:
        self._name = name
        self._write = write
        self._limit = limit
        self._linger = linger
        self._waiting: list[tuple[T, Future[R] | None]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, element: T) -> Future[R]:
        """Queue an element.

        Returns:
            Its result, once it is durable. It cannot be cancelled: a caller that gives up leaves its group whole.

        Raises:
            UnavailableError: the queue is full or closed.
        """
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        self._queue(element, future)
        return future

    def post(self, element: T) -> None:
        """Queue an element of which nobody waits to hear; `write` itself says what it could not do.

        Raises:
            UnavailableError: see `submit`.
        """
        self._queue(element, None)

    def _queue(self, element: T, future: Future[R] | None) -> None:
        with self._changed:
            if self._closing:
                raise UnavailableError("the log is closed")
            if self._limit is not None and len(self._waiting) >= self._limit:
                raise UnavailableError("the log cannot keep up")
            self._waiting.append((element, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            if len(self._waiting) == 1:  # whoever lingers need not be woken by everything that comes
                self._changed.notify()

    def close(self) -> None:
        """Write what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while group := self._next_group():
            try:
                results = self._write([element for element, _ in group])
            except Exception as error:  # noqa: BLE001 - raised again where each element's caller waits
                for _, future in group:
                    if future is not None:
                        future.set_exception(error)
            else:
                for (_, future), result in zip(group, results, strict=True):
                    if future is not None:
                        future.set_result(result)

    def _next_group(self) -> list[tuple[T, Future[R] | None]]:
        """What waits; empty only when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._linger:
                self._changed.wait_for(lambda: self._closing, timeout=self._linger)
            group, self._waiting = self._waiting, []
        return group
