"""Which prompt is rolled out, scored and trained when: a state machine without I/O, clocks or processes.

The prompts of all epochs form one stream, each epoch in an order of its own. Batch v is the v-th slice of the stream
and is trained when the weights have version v, so the makeup of a batch never depends on timing. A group of batch v may
be rolled out only by weights of a version w with v - alpha <= w <= v (ROLL Flash, 2510.11345: the asynchronous ratio;
RollArt, 2512.22560, section on bounded staleness: counted from the start of the rollout).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

_ORDER, _ROLLOUT = 0, 1  # separate random streams below one seed


class Stage(Enum):
    """Where one group stands."""

    WAITING = "waiting"
    ROLLING = "rolling"
    ROLLED = "rolled"
    SCORING = "scoring"
    READY = "ready"


_AT_WORK = {Stage.WAITING: Stage.ROLLING, Stage.ROLLED: Stage.SCORING}
_BACK = {working: idle for idle, working in _AT_WORK.items()}
_DONE = {Stage.ROLLING: Stage.ROLLED, Stage.SCORING: Stage.READY}


class PoisonedPromptError(DataError):
    """A prompt on which workers failed too often."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done; with a version it says everything about a run's schedule.

    Attributes:
        prompts: how many there are; their ids are 0 to prompts - 1.
        epochs: how often each is used.
        batch: groups per training step; the last step of the run may hold fewer.
        alpha: the asynchronous ratio, in training steps; 0 is synchronous.
        chunk: most prompts in one assignment.
        tries: failures of one prompt, in rollout and reward together, that end the run.
        seed: of the orders and of the rollouts.
        pinned: roll batch v out by exactly version max(0, v - alpha), which makes a run repeatable bit for bit at every
            alpha; otherwise by the newest version there is.
        shuffled: whether each epoch has an order of its own; otherwise prompts come by their ids, for trainers whose
            ids are places of a shuffled stream already.
    """

    prompts: int
    epochs: int = 1
    batch: int = 32
    alpha: int = 0
    chunk: int = 8
    tries: int = 3
    seed: int = 0
    pinned: bool = True
    shuffled: bool = True

    def __post_init__(self) -> None:
        for name in ("prompts", "epochs", "batch", "chunk", "tries"):
            _at_least(name, getattr(self, name), 1)
        for name in ("alpha", "seed"):
            _at_least(name, getattr(self, name), 0)

    @property
    def positions(self) -> int:
        """Length of the stream: prompts times epochs."""
        return self.prompts * self.epochs

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return -(-self.positions // self.batch)

    def batch_positions(self, version: int) -> range:
        """The positions of the stream that are trained at `version`."""
        return range(version * self.batch, min((version + 1) * self.batch, self.positions))

    def epoch(self, position: int) -> int:
        """The epoch of a position of the stream."""
        return position // self.prompts

    def prompt(self, position: int) -> int:
        """The prompt id at a position of the stream."""
        within = position % self.prompts
        return _order(self.seed, self.epoch(position), self.prompts)[within] if self.shuffled else within

    def rollout_seed(self, position: int) -> int:
        """63 random bits that depend on the seed, the prompt and the epoch, never on the worker."""
        return rollout_seed(self.seed, self.prompt(position), self.epoch(position))


def rollout_seed(seed: int, prompt: int, epoch: int) -> int:
    """The seed of one group: 63 bits of a hash of its three arguments."""
    words = np.random.SeedSequence((seed, _ROLLOUT, prompt, epoch)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, prompts: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, _ORDER, epoch)).permutation(prompts).tolist())


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError("too small", field=name, value=str(value), remedy=f"give at least {least}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Work given to one worker: whole groups of one batch, all for the same weights.

    Attributes:
        number: never given twice by one schedule.
        stage: ROLLING or SCORING.
        positions: of the stream, ascending.
        version: of the weights that roll out; for SCORING of the first group's rollout.
    """

    number: int
    stage: Stage
    positions: tuple[int, ...]
    version: int


@dataclass(slots=True)
class _Group:
    stage: Stage = Stage.WAITING
    version: int = -1
    failures: int = 0


@dataclass(slots=True)
class Schedule:
    """The state of a run. Its durable part is `version` alone: what was not trained is rolled out again.

    Attributes:
        plan: what is to be done.
        version: training steps done, which is the version of the newest weights.
        first_ticket: the number of the next ticket; a schedule that follows another one goes on from there.
        dropped: late results of tickets that were no longer valid.
        reissued: groups taken from a worker that was lost or failed.
    """

    plan: Plan
    version: int = 0
    first_ticket: int = 0
    dropped: int = 0
    reissued: int = 0
    _groups: dict[int, _Group] = field(default_factory=dict)
    _tickets: dict[int, tuple[str, Ticket]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.version <= self.plan.steps:
            raise DataError(
                "outside the run",
                field="version",
                value=str(self.version),
                remedy=f"continue a run of 0 to {self.plan.steps} steps",
            )
        self._open()

    @property
    def finished(self) -> bool:
        """Whether every batch was trained."""
        return self.version == self.plan.steps

    def issue_rollout(self, worker: str) -> Ticket | None:
        """Give `worker` the earliest prompts that may be rolled out now, or None when it has to wait."""
        return self._issue(worker, Stage.WAITING)

    def issue_scoring(self, worker: str) -> Ticket | None:
        """Give `worker` the earliest groups that wait for a reward, or None."""
        return self._issue(worker, Stage.ROLLED)

    def complete(self, worker: str, number: int) -> Ticket | None:
        """Count a ticket's result, once.

        Returns:
            The ticket when its result counts; None when the ticket is no longer this worker's, which is the case after
            `lost`, `failed` or an earlier `complete`: the result is to be thrown away.
        """
        ticket = self._take(worker, number)
        if ticket is None:
            self.dropped += 1
            return None
        for position in ticket.positions:
            group = self._groups[position]
            group.stage = _DONE[group.stage]
        return ticket

    def failed(self, worker: str, number: int, reason: str) -> None:
        """The worker lives but could not do the ticket: its groups wait again, one by one from now on.

        Raises:
            PoisonedPromptError: this was the last try of a prompt.
        """
        ticket = self._take(worker, number)
        if ticket is not None:
            self._return(ticket, reason)

    def lost(self, worker: str, reason: str) -> None:
        """The worker is dead or is thought dead: what it held waits again and its late results do not count.

        Raises:
            PoisonedPromptError: this was the last try of a prompt.
        """
        held = [ticket for owner, ticket in self._tickets.values() if owner == worker]
        for ticket in held:
            del self._tickets[ticket.number]
        for ticket in held:
            self._return(ticket, reason)

    def positions_of(self, number: int) -> tuple[int, ...]:
        """The positions of a ticket that is at work; none where it is not."""
        held = self._tickets.get(number)
        return () if held is None else held[1].positions

    def ready(self) -> tuple[int, ...] | None:
        """The positions of the batch to train now, ascending, or None while one of its groups is missing."""
        positions = tuple(self.plan.batch_positions(self.version))
        if self.finished or any(self._groups[position].stage is not Stage.READY for position in positions):
            return None
        return positions

    def rolled_at(self, positions: Iterable[int]) -> list[int]:
        """The version of the weights by which each group was (or is being) rolled out."""
        return [self._groups[position].version for position in positions]

    def trained(self) -> None:
        """The batch of `ready` has been trained: the next version exists.

        Raises:
            RuntimeError: no batch was ready.
        """
        positions = self.ready()
        if positions is None:
            raise RuntimeError(f"batch {self.version} was trained before it was complete")
        for position in positions:
            del self._groups[position]
        self.version += 1
        self._open()

    def _open(self) -> None:
        """Make the groups known that the staleness bound admits: batches version to version + alpha."""
        for batch in range(self.version, self.version + self.plan.alpha + 1):
            for position in self.plan.batch_positions(batch):
                self._groups.setdefault(position, _Group())

    def _issue(self, worker: str, idle: Stage) -> Ticket | None:
        chosen: list[int] = []
        version = -1
        for position in sorted(self._groups):
            group = self._groups[position]
            if group.stage is not idle:
                continue
            suspect = group.failures > 0  # alone, so that a second failure is its own
            due = self._weights_for(position) if idle is Stage.WAITING else group.version
            if chosen and (suspect or due != version):
                break
            chosen.append(position)
            version = due
            if suspect or len(chosen) == self.plan.chunk:
                break
        if not chosen:
            return None
        for position in chosen:
            self._groups[position].stage = _AT_WORK[idle]
            self._groups[position].version = version
        ticket = Ticket(self.first_ticket, _AT_WORK[idle], tuple(chosen), version)
        self.first_ticket += 1
        self._tickets[ticket.number] = (worker, ticket)
        return ticket

    def _weights_for(self, position: int) -> int:
        return max(0, position // self.plan.batch - self.plan.alpha) if self.plan.pinned else self.version

    def _take(self, worker: str, number: int) -> Ticket | None:
        owner, ticket = self._tickets.get(number, (None, None))
        if ticket is None or owner != worker:
            return None
        del self._tickets[number]
        return ticket

    def _return(self, ticket: Ticket, reason: str) -> None:
        for position in ticket.positions:
            group = self._groups[position]
            group.stage = _BACK[group.stage]
            group.failures += 1
            self.reissued += 1
        worst = max(ticket.positions, key=lambda position: self._groups[position].failures)
        if self._groups[worst].failures >= self.plan.tries:
            raise PoisonedPromptError(
                f"a prompt failed {self.plan.tries} times while {ticket.stage.value}, last: {reason}",
                field="prompt",
                value=str(self.plan.prompt(worst)),
                remedy="look at this prompt's data, remove it, or raise tries",
            )
