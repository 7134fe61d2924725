"""The controller keeps the children at work, holds the buffer and feeds the learner; `Schedule` decides everything."""

from __future__ import annotations

import itertools
import json
import queue
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataError, WindfireError
from recsys.storage import sha256_parts, write_json_atomically
from training.rl.schedule import Plan, Schedule, Stage, Ticket
from training.rl.wire import Arrays, join_groups, split_groups
from training.rl.worker import Event, Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.rl.protocols import Part

REPORT = "report.json"
_TICK_SECONDS = 0.2  # how late the death of an idle child may be noticed


class RunError(WindfireError):
    """A run of the core that cannot go on; its checkpoint stays good."""

    code = "rl_run"


@dataclass(frozen=True, slots=True)
class Settings:
    """A run.

    Attributes:
        plan: prompts, epochs, batches, staleness.
        rollout: how rollout workers are made.
        reward: how reward workers are made.
        learner: how the learner is made.
        rollout_workers: processes.
        reward_workers: processes.
        checkpoint_every: training steps; the last step is always kept.
        seconds: most time for one assignment or step; a child that takes longer is killed.
        start_seconds: most time for a child to start.
        restarts: replacements per child of a role without a result of that role between them; of the learner in all.
    """

    plan: Plan
    rollout: Part
    reward: Part
    learner: Part
    rollout_workers: int = 1
    reward_workers: int = 1
    checkpoint_every: int = 1
    seconds: float = 60.0
    start_seconds: float = 60.0
    restarts: int = 3

    def __post_init__(self) -> None:
        for name in ("rollout_workers", "reward_workers", "checkpoint_every", "seconds", "start_seconds"):
            if getattr(self, name) <= 0:
                raise DataError("must be positive", field=name, value=str(getattr(self, name)), remedy="raise it")

    @property
    def fingerprint(self) -> str:
        """Of all that decides the weights; numbers of workers, times and checkpoints do not."""
        parts = [asdict(part) for part in (self.plan, self.rollout, self.reward, self.learner)]
        for part in parts:
            part.pop("local", None)
        return sha256_parts([json.dumps(part, sort_keys=True) for part in parts])


@dataclass(slots=True)
class Report:
    """What happened, written to report.json when the run ends well.

    Attributes:
        first_version: where this run began.
        version: where it ended.
        seconds: wall time.
        staleness: trained groups by how many versions old their weights were; steps done twice count twice.
        deaths: children that ended or were killed before the end, by role.
        reissued: groups taken from a lost or failed worker.
        dropped: late results that did not count.
        metrics: of every step of this run, by the version it was taken at.
    """

    first_version: int = 0
    version: int = 0
    seconds: float = 0.0
    staleness: dict[int, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    reissued: int = 0
    dropped: int = 0
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


def run(settings: Settings, directory: Path, on_step: Callable[[Controller], None] | None = None) -> Report:
    """Train to the end of the plan or until the learner is done, from the checkpoint in `directory` where there is one.

    Args:
        settings: what to run.
        directory: holds checkpoint.safetensors, weights/, lock and report.json.
        on_step: called in this process after every training step, for progress.

    Raises:
        PoisonedPromptError: workers failed on one prompt as often as the plan allows.
        RunError: a child does not start, the learner fails, or children die again and again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    controller = Controller(settings, directory, on_step)
    try:
        controller.work()
    finally:
        controller.stop()
    write_json_atomically(directory / REPORT, asdict(controller.report) | {"settings": asdict(settings)})
    return controller.report


class Controller:
    """One run in this process; use `run`."""

    def __init__(
        self, settings: Settings, directory: Path, on_step: Callable[[Controller], None] | None = None
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._on_step = on_step
        self._events: queue.Queue[Event] = queue.Queue()
        self._names = itertools.count()
        self._workers: dict[str, Worker] = {}
        self._lost: dict[str, int] = {}
        self._buffer: dict[int, Arrays] = {}  # groups by position of the stream
        self._tickets = itertools.count()  # of training steps
        self._ended = False  # by the learner, before the plan
        self._schedule: Schedule | None = None  # known when the learner has read its checkpoint
        self.report = Report()

    @property
    def schedule(self) -> Schedule:
        """Where the run stands.

        Raises:
            RuntimeError: the learner has not started yet.
        """
        if self._schedule is None:
            raise RuntimeError("the schedule is not known before the learner has started")
        return self._schedule

    def pids(self, role: str) -> list[int]:
        """The processes of a role, oldest first."""
        return [worker.pid for worker in self._workers.values() if worker.role == role]

    def work(self) -> None:
        """Until the plan is done; see `run` for the errors."""
        begun = time.monotonic()
        self._start("learner")
        for _ in range(self._settings.rollout_workers):
            self._start("rollout")
        for _ in range(self._settings.reward_workers):
            self._start("reward")
        while self._schedule is None or not (self._ended or self._schedule.finished):
            self._assign()
            try:
                event = self._events.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                pass
            else:
                self._take(event)
            self._bury()
        self.report.seconds = time.monotonic() - begun
        self.report.version = self.schedule.version
        self.report.reissued += self.schedule.reissued
        self.report.dropped += self.schedule.dropped

    def stop(self) -> None:
        """End every child."""
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _start(self, role: str) -> None:
        settings = self._settings
        part: Part = getattr(settings, role)
        common = {
            "directory": str(self._directory),
            "fingerprint": settings.fingerprint,
            "alpha": settings.plan.alpha,
        }
        name = f"{role} {next(self._names)}"
        self._workers[name] = Worker(name, role, part, common, self._events, settings.start_seconds)

    def _assign(self) -> None:
        """Give every idle child what there is for it."""
        if self._schedule is None:
            return
        for worker in list(self._workers.values()):
            if worker.busy or not worker.alive:
                continue
            if worker.role == "learner":
                self._train(worker)
            elif worker.role == "rollout":
                self._roll(worker, self._schedule.issue_rollout(worker.name))
            else:
                self._score(worker, self._schedule.issue_scoring(worker.name))

    def _roll(self, worker: Worker, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        plan = self._settings.plan
        arrays: Arrays = {
            "prompt_ids": np.array([plan.prompt(position) for position in ticket.positions], dtype=np.int64),
            "seeds": np.array([plan.rollout_seed(position) for position in ticket.positions], dtype=np.int64),
        }
        worker.send(ticket.number, {"version": ticket.version}, arrays, self._settings.seconds)

    def _score(self, worker: Worker, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        try:
            groups = join_groups([self._buffer[position] for position in ticket.positions])
        except DataError as error:
            raise RunError(str(error), remedy=error.remedy) from error
        worker.send(ticket.number, {}, groups, self._settings.seconds)

    def _train(self, learner: Worker) -> None:
        positions = self.schedule.ready()
        if positions is None:
            return
        try:
            batch = join_groups([self._buffer[position] for position in positions])
        except DataError as error:
            raise RunError(str(error), remedy=error.remedy) from error
        version = self.schedule.version
        save = (version + 1) % self._settings.checkpoint_every == 0 or version + 1 == self._settings.plan.steps
        learner.send(next(self._tickets), {"version": version, "save": save}, batch, self._settings.seconds)

    def _take(self, event: Event) -> None:
        """Act on what a child did, unless it has been given up already."""
        worker = event.worker
        if worker.name not in self._workers:
            if self._schedule is not None and event.ticket is not None and worker.role != "learner":
                self._schedule.complete(worker.name, event.ticket)  # counts as dropped
            return
        if event.head is None:
            self._lose(worker, "its process ended")
            return
        worker.busy = False
        error = event.head.get("error")
        if error is not None and (event.ticket is None or worker.role == "learner"):
            raise RunError(f"the {worker.role} failed: {error}", remedy="see the message; the checkpoint is kept")
        if event.ticket is None:
            self._greet(worker, event.head)
        elif worker.role == "learner":
            self._trained(event.head)
        elif error is not None:
            self.schedule.failed(worker.name, event.ticket, str(error))
        else:
            self._keep(worker, event.ticket, event.arrays)

    def _greet(self, worker: Worker, head: dict[str, Any]) -> None:
        worker.ready = True
        if worker.role != "learner":
            return
        version = int(head["version"])
        self._ended = bool(head["done"])
        if self._schedule is None:
            self.report.first_version = version
            self._schedule = Schedule(self._settings.plan, version)
            return
        # A learner that came back knows its checkpoint only: what was trained after it is rolled out again.
        before = self._schedule
        self.report.reissued += before.reissued
        self.report.dropped += before.dropped
        self._schedule = Schedule(self._settings.plan, version, first_ticket=before.first_ticket)
        self._buffer.clear()

    def _keep(self, worker: Worker, number: int, arrays: Arrays) -> None:
        """Put the groups of a ticket, or their rewards, into the buffer."""
        positions = self.schedule.positions_of(number)
        try:
            groups = split_groups(arrays, len(positions)) if positions else []
        except DataError as error:
            self.schedule.failed(worker.name, number, str(error))
            return
        ticket = self.schedule.complete(worker.name, number)
        if ticket is None:
            return
        self._lost[worker.role] = 0
        for position, group in zip(ticket.positions, groups, strict=True):
            if ticket.stage is Stage.ROLLING:
                self._buffer[position] = {**group, **self._labels(position, ticket.version)}
            else:
                self._buffer[position] = {**self._buffer[position], **group}

    def _labels(self, position: int, version: int) -> Arrays:
        plan = self._settings.plan
        labels = {"prompt_ids": plan.prompt(position), "epochs": plan.epoch(position), "rollout_versions": version}
        return {name: np.array([value], dtype=np.int64) for name, value in labels.items()}

    def _trained(self, head: dict[str, Any]) -> None:
        positions = self.schedule.ready() or ()
        version = self.schedule.version
        for rolled_at in self.schedule.rolled_at(positions):
            age = version - rolled_at
            self.report.staleness[age] = self.report.staleness.get(age, 0) + 1
        self.schedule.trained()
        for position in positions:
            del self._buffer[position]
        self.report.metrics[version] = head["metrics"]
        self._ended = bool(head["done"])
        if self._on_step is not None:
            self._on_step(self)

    def _bury(self) -> None:
        """Give up children that are overdue or that ended while they had nothing to do."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.busy and now > worker.due:
                self._lose(worker, "it did not answer in time")
            elif not worker.busy and not worker.alive:
                self._lose(worker, "its process ended")

    def _lose(self, worker: Worker, reason: str) -> None:
        """Replace a child.

        Raises:
            RunError: too often.
            PoisonedPromptError: it was the last try of a prompt.
        """
        del self._workers[worker.name]
        worker.stop()
        role = worker.role
        self.report.deaths[role] = self.report.deaths.get(role, 0) + 1
        if role != "learner" and self._schedule is not None:
            self._schedule.lost(worker.name, reason)
        # The learner's are never forgiven: one that dies at every second step would never come to the end.
        self._lost[role] = self._lost.get(role, 0) + 1
        children = {"rollout": self._settings.rollout_workers, "reward": self._settings.reward_workers}.get(role, 1)
        if self._lost[role] > self._settings.restarts * children:
            raise RunError(
                f"{self._lost[role]} processes of the {role} were lost, the last because {reason}",
                field="restarts",
                value=str(self._settings.restarts),
                remedy="look at what they wrote to standard error; the checkpoint is kept",
            )
        self._start(role)
