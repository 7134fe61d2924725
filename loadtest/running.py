"""What open and closed loop share: the load, the record of a run, and its window."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from loadtest.answers import outcome_of, served_by
from loadtest.errors import SettingsError
from loadtest.pool import Pool
from loadtest.samples import OK, Recorder, Samples

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from loadtest.answers import Judge
    from loadtest.connection import Ticket
    from loadtest.target import Target

T = TypeVar("T")
_JUDGE_FAILED: Final = "invalid_judge"
START_DELAY: Final = 0.02  # seconds between the last preparation and the first intended time
CPU_LIMIT: Final = 0.7  # of one core; above it the client's own queueing is part of what it measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load; all times in seconds.

    Attributes:
        rate: requests per second.
        seconds: length of the measured window.
        warmup: sent before it and not measured; its errors are counted by themselves.
        deadline: from the intended time; told the server in X-Deadline-Ms, less what has passed.
        timeout: from the intended time; then a request is given up.
        connections: at most.
        seed: of the arrivals.
    """

    rate: float
    seconds: float
    warmup: float = 0.0
    deadline: float = 0.1
    timeout: float = 10.0
    connections: int = 64
    seed: int = 1

    def __post_init__(self) -> None:
        positive = {
            "rate": self.rate,
            "seconds": self.seconds,
            "deadline": self.deadline,
            "connections": self.connections,
        }
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise SettingsError(
                    "must be above zero and finite", field=name, value=value, remedy="give a larger one"
                )
        if not 0 <= self.warmup < float("inf"):
            raise SettingsError("must not be negative", field="warmup", value=self.warmup, remedy="0 leaves it out")
        if not self.deadline <= self.timeout < float("inf"):
            raise SettingsError(
                "must not be shorter than the deadline", field="timeout", value=self.timeout, remedy="give a longer one"
            )


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured under a load.

    Attributes:
        load: as asked for.
        samples: of the measured window.
        client_cpu: user and system time of this process over the time of the window, 1 = one core.
        longest_queue: requests that waited for a connection at once, at most.
        warmup_errors: kind to number, of the warm-up.
    """

    load: Load
    samples: Samples
    client_cpu: float
    longest_queue: int
    warmup_errors: dict[str, int]

    @property
    def client_bound(self) -> bool:
        """Whether the client was too busy to be believed."""
        return self.client_cpu > CPU_LIMIT


class Measurement:
    """The pool of one run and everything its outcomes are written to.

    Args:
        target: the server.
        load: window and limits.
        judge: looks at 2xx answers.
    """

    def __init__(self, target: Target, load: Load, judge: Judge | None) -> None:
        self.pool = Pool(target, load.connections, deadline=load.deadline, timeout=load.timeout, done=self._done)
        self._finished = asyncio.Event()
        self._window_over = asyncio.Event()
        self._load = load
        self._judge = judge
        self._recorder = Recorder()
        self._warmup_errors: Counter[str] = Counter()
        self._opens = self._closes = 0.0
        self._cpu_marks: list[tuple[float, float]] = []
        self._all_sent = False
        self._fault: Exception | None = None
        self._awaited: dict[Ticket, asyncio.Future[None]] = {}

    @contextmanager
    def open(self) -> Iterator[Pool]:
        """The pool; it is closed behind the block, whatever happens in it."""
        try:
            yield self.pool
        finally:
            self.pool.close()
            self._recorder.close()

    def start(self) -> float:
        """Begin; returns the monotonic second that intended times count from."""
        origin = time.monotonic() + START_DELAY
        self._opens = origin + self._load.warmup
        self._closes = self._opens + self._load.seconds
        loop = asyncio.get_running_loop()
        for moment in (self._opens, self._closes):
            loop.call_later(moment - time.monotonic(), self._mark_cpu)
        return origin

    @property
    def closes(self) -> float:
        """Monotonic second of the window's end; nothing is intended to be sent from then on."""
        return self._closes

    async def answer(self, ticket: Ticket) -> None:
        """Submit a ticket and wait for its outcome."""
        waiting = self._awaited[ticket] = asyncio.get_running_loop().create_future()
        self.pool.submit(ticket)
        await waiting

    def all_sent(self) -> None:
        """Nothing more will be submitted; `result` waits for the last outcome."""
        self._all_sent = True
        self._end_if_done()

    async def result(self) -> Run:
        """Wait for the last outcome.

        Raises:
            Exception: the first one that the judge raised.
        """
        await self._finished.wait()
        await self._window_over.wait()
        if self._fault is not None:
            raise self._fault
        (began, cpu_before), (ended, cpu_after) = self._cpu_marks
        return Run(
            self._load, self._recorder.finish(self._load.seconds), (cpu_after - cpu_before) / (ended - began),
            self.pool.longest_queue, dict(self._warmup_errors),
        )  # fmt: skip

    def _mark_cpu(self) -> None:
        self._cpu_marks.append((time.monotonic(), time.process_time()))
        if len(self._cpu_marks) == 2:
            self._window_over.set()

    def _done(self, ticket: Ticket, status: int, body: bytes, failure: str | None) -> None:
        now = time.monotonic()
        try:
            outcome = failure or outcome_of(ticket.request, status, body, self._judge)
        except Exception as error:  # noqa: BLE001 - whatever the judge raises is raised by `result`
            self._fault, outcome = self._fault or error, _JUDGE_FAILED
        if ticket.intended >= self._opens:
            from_send = now - ticket.sent if ticket.sent else float("nan")
            self._recorder.add(
                ticket.intended - self._opens, now - ticket.intended, from_send, outcome, served_by(body)
            )
        elif outcome != OK:
            self._warmup_errors[outcome] += 1
        waiting = self._awaited.pop(ticket, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._all_sent and self.pool.under_way == 0:
            self._finished.set()


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of uvloop, which costs the client less CPU than asyncio's own."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run side by side; the first error ends the others and is raised as it is."""
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
