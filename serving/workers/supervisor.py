"""The parent of several workers: binds the port, starts them, and replaces those that end.

It opens no state, loads no model and answers nothing, so that hardly anything can end it.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Final

import structlog

from recsys.errors import UnavailableError
from serving.logs import configure_logs
from serving.metrics import CrewMetrics
from serving.security.keys import open_ring
from serving.worker_values import PARENT, WorkerValues, clean
from serving.workers.folders import alone, check_workers, metrics_folder
from serving.workers.signals import Signals
from serving.workers.talk import Word, hear, say

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from serving.settings import Settings

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds from a worker's death to its restart: the first, doubled with each death, and the longest."""
STEADY: Final = 60.0
"""Seconds for which a worker must have served for its deaths to be forgotten."""

_LOOP: Final = 3  # deaths in a row that are called a crash loop
_PREPARING: Final = 60.0  # seconds a successor may take before the one that leaves is let go without it
_MARGIN: Final = 10.0  # seconds beyond the drain's own limits after which a worker is killed
_LATE: Final = 1.0  # seconds by which this process woke too late: it was stopped, and perhaps everybody was
_BACKLOG: Final = 2_048  # connections that wait for a worker
_log = structlog.stdlib.get_logger(__name__)


def run_workers(settings: Settings) -> None:
    """Serve with several workers until SIGTERM or SIGINT; SIGHUP replaces all of them, one after the other.

    Raises:
        ConfigError: see `check_workers` and `serving.security.keys.open_ring`.
        OSError: the address cannot be listened on.
        UnavailableError: no worker could start, or another server has the state.
    """
    check_workers(settings)
    open_ring(settings)  # what it refuses here it need not refuse in every worker
    configure_logs(settings.log_level)
    with alone(settings.state), bound(settings.host, settings.port) as listening, Signals() as signals:
        host, port = listening.getsockname()[:2]
        _log.info("workers_start", workers=settings.workers, host=host, port=port)
        clean(metrics_folder(settings))
        with closing(WorkerValues(metrics_folder(settings), PARENT)) as values:
            Supervisor(settings, listening, signals, CrewMetrics(values)).run()
    _log.info("workers_ended")


def bound(host: str, port: int) -> socket.socket:
    """The listening socket that all workers share, so that what waits in it outlives any of them.

    Raises:
        OSError: see `socket.create_server`.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


def pause_after(deaths: int) -> float:
    """Seconds until the restart behind the n-th death in a row."""
    return min(FIRST_PAUSE * 2.0 ** (deaths - 1), LONGEST_PAUSE)


def _work(settings: Settings, number: int, listening: socket.socket, parent: Connection) -> None:
    """A worker's process begins here; the parent itself never loads a server."""
    from serving.workers.worker import work

    work(settings, number, listening, parent)


@dataclass(slots=True, eq=False)
class _Worker:
    """A process and where it stands."""

    number: int
    process: SpawnProcess
    link: Connection
    prepared: bool = False
    going: bool = False  # it has the state folder
    up_since: float | None = None
    heard: float | None = None  # since it is up
    told: bool = False  # to drain or to stop: its end is no surprise
    deadline: float | None = None  # when it is killed
    silent: bool = False  # its end of the pipe is closed


@dataclass(slots=True)
class _Place:
    """One of the workers that there should be, whichever process that is at the moment."""

    number: int
    current: _Worker | None = None
    successor: _Worker | None = None  # waits for `current` to end
    patience: float | None = None  # until when `current`, which wants to leave, waits for its successor
    deaths: int = 0  # in a row
    restart: float | None = None  # when


class Supervisor:
    """Keeps as many workers as the settings say.

    A worker that somebody sends SIGTERM is asked to drain once its successor has loaded all modules, so that the place
    is empty for the shortest time; the successor opens the state folder when the other has closed it.

    Args:
        settings: of the workers.
        listening: what they accept from.
        signals: that this process has received.
        metrics: of the parent.
    """

    def __init__(self, settings: Settings, listening: socket.socket, signals: Signals, metrics: CrewMetrics) -> None:
        self._settings = settings
        self._listening = listening
        self._signals = signals
        self._metrics = metrics
        metrics.wanted.set(settings.workers)
        self._places = [_Place(number) for number in range(settings.workers)]
        self._rolling: deque[_Place] = deque()  # still to be replaced
        self._turn: _Place | None = None  # being replaced
        self._stopping = False
        self._served = False  # some worker has been up

    def run(self) -> None:
        """Start all, and stay until the last has ended.

        Raises:
            UnavailableError: none could start.
        """
        try:
            for place in self._places:
                place.current = self._start(place.number)
            while any(place.current or place.restart is not None for place in self._places):
                self._step()
        finally:
            for worker in self._workers():
                worker.process.kill()
                worker.process.join()
        if not self._served and self._failed:
            raise UnavailableError("no worker could start", remedy="the log lines before this one say why")

    @property
    def _failed(self) -> bool:
        return any(place.deaths for place in self._places)

    def _step(self) -> None:
        """Wait for whatever comes next, and act on it."""
        workers = self._workers()
        links = [worker.link for worker in workers if not worker.silent]
        timeout, began = self._until_next(), time.monotonic()
        ready = wait([self._signals.fileno(), *links, *(each.process.sentinel for each in workers)], timeout=timeout)
        if timeout is not None and time.monotonic() - began > timeout + _LATE:
            self._forgive(time.monotonic())
        for number in self._signals.received():
            self._on_signal(number)
        for worker in workers:
            if worker.link in ready:
                self._on_word(worker, hear(worker.link))
            if worker.process.sentinel in ready:
                self._on_end(worker)
        self._on_time(time.monotonic())
        self._metrics.up.set(sum(worker.up_since is not None and not worker.told for worker in self._workers()))

    def _workers(self) -> list[_Worker]:
        found = [each for place in self._places for each in (place.current, place.successor)]
        return [worker for worker in found if worker is not None]

    def _until_next(self) -> float | None:
        times = [moment for worker in self._workers() for moment in (worker.deadline, self._silent_at(worker))]
        times += [moment for place in self._places for moment in (place.restart, place.patience)]
        known = [moment for moment in times if moment is not None]
        return max(0.0, min(known) - time.monotonic()) if known else None

    def _silent_at(self, worker: _Worker) -> float | None:
        """When a worker that serves will have been silent for too long."""
        if worker.heard is None or worker.told:
            return None
        return worker.heard + self._settings.worker_silence.total_seconds()

    def _forgive(self, now: float) -> None:
        """Wait anew for every worker's sign of life."""
        for worker in self._workers():
            worker.heard = None if worker.heard is None else now

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (self._settings, number, self._listening, theirs)
        process = context.Process(target=_work, args=arguments, name=f"windfire-worker-{number}")
        process.start()
        theirs.close()  # what is left is the worker's: the pipe breaks with its process
        return _Worker(number, process, ours)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            if not self._stopping:
                _log.info("rolling_restart_begun", workers=len(self._places))
                self._rolling = deque(self._places)
                self._roll()
        elif not self._stopping:
            self._stop()
        elif number == signal.SIGINT:  # Ctrl-C a second time
            for worker in self._workers():
                worker.process.kill()

    def _stop(self) -> None:
        _log.info("workers_draining")
        self._stopping = True
        self._listening.close()  # the workers' copies hold the port for as long as somebody takes from it
        for place in self._places:
            place.restart = place.patience = None
        for worker in self._workers():
            self._tell(worker, Word.STOP)

    def _tell(self, worker: _Worker, word: Word) -> None:
        """Let a worker end, and kill it when it takes longer than its drain may."""
        if not worker.told:
            limit = self._settings.drain_delay + self._settings.drain_timeout
            worker.deadline = time.monotonic() + limit.total_seconds() + _MARGIN
        worker.told = True
        say(worker.link, word)

    def _on_word(self, worker: _Worker, word: Word | None) -> None:
        place = self._places[worker.number]
        if word is None:
            worker.silent = True
        elif word is Word.PREPARED:
            worker.prepared = True
            self._advance(place)
        elif word is Word.UP:
            worker.up_since = worker.heard = time.monotonic()
            self._served = True
            _log.info("worker_up", worker=worker.number, pid=worker.process.pid)
            if self._turn is place:
                self._turn = None
                self._roll()
                if self._turn is None:
                    _log.info("rolling_restart_done")
        elif word is Word.ALIVE:
            worker.heard = time.monotonic()
        elif word is Word.LEAVING and not self._stopping:
            self._replace(place)

    def _replace(self, place: _Place) -> None:
        """Start a successor; whoever asks a second time does not want to wait for it."""
        if place.successor is None:
            place.successor = self._start(place.number)
            place.patience = time.monotonic() + _PREPARING
        elif place.current is not None:
            self._tell(place.current, Word.DRAIN)

    def _advance(self, place: _Place) -> None:
        """Hand the state on where that is possible."""
        current, successor = place.current, place.successor
        if current is None or self._stopping:
            return
        if current.prepared and not current.going:
            current.going = True
            say(current.link, Word.GO)
        if successor is not None and successor.prepared and not current.told:
            place.patience = None
            self._tell(current, Word.DRAIN)

    def _roll(self) -> None:
        """Replace the next worker, unless one is being replaced."""
        while self._turn is None and self._rolling:
            place = self._rolling.popleft()
            if place.current is not None:
                self._turn = place
                self._replace(place)

    def _on_end(self, worker: _Worker) -> None:
        worker.process.join()
        worker.link.close()
        place = self._places[worker.number]
        asked = worker.told or worker.process.exitcode == -signal.SIGTERM
        if worker.up_since is not None and time.monotonic() - worker.up_since >= STEADY:
            place.deaths = 0
        if not asked:
            place.deaths += 1
            self._mourn(worker, place)
        if worker is place.successor:
            place.successor = place.patience = None
            if place.current is not None and not self._stopping:
                self._tell(place.current, Word.DRAIN)
            return
        place.current, place.successor = place.successor, None
        if self._stopping:
            return
        if place.current is not None:
            place.patience = None
            self._advance(place)
        elif not self._served and not asked:
            self._stop()
        else:
            place.restart = time.monotonic() + (pause_after(place.deaths) if place.deaths else 0.0)

    def _mourn(self, worker: _Worker, place: _Place) -> None:
        """Say how a worker ended that nobody had asked to."""
        self._metrics.deaths.labels(worker.number).inc()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        _log.error("worker_died", worker=worker.number, pid=worker.process.pid, how=how, deaths=place.deaths)
        if place.deaths >= _LOOP:
            _log.error("worker_crash_loop", worker=worker.number, deaths=place.deaths, pause=pause_after(place.deaths))
        if self._turn is place:
            _log.error("rolling_restart_stopped", worker=worker.number)
            self._turn = None
            self._rolling.clear()

    def _on_time(self, now: float) -> None:
        for place in self._places:
            if place.restart is not None and now >= place.restart:
                place.restart, place.current = None, self._start(place.number)
            if place.patience is not None and now >= place.patience:
                place.patience = None
                if place.current is not None:
                    self._tell(place.current, Word.DRAIN)
        for worker in self._workers():
            if worker.deadline is not None and now >= worker.deadline:
                worker.deadline = None
                _log.error("worker_killed", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
            silent_at = self._silent_at(worker)
            if silent_at is not None and now >= silent_at:
                worker.heard = None
                _log.error("worker_silent", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
