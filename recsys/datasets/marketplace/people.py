"""Who buys: lasting traits, drifting interests, and the chain of moments at which somebody wants something.

A user's life does not depend on what is shown to them, and every day of a block of users has its own generator.
So what a user wants at a time is a function of (seed, user, time), a day can be added without touching those
before it, and an experiment can show other slates to the very same people at the very same moments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.datasets.marketplace.settings import (
    DAY,
    HOUR,
    INTEREST_WEIGHTS,
    INTERESTS,
    SECOND,
    START,
    STYLE,
    SUCCESSOR_WEIGHTS,
    SUCCESSORS,
    Bools,
    Doubles,
    Floats,
    Indices,
    Ints,
    Scene,
    Stream,
    WorldSize,
    stream,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recsys.datasets.marketplace.catalog import CategoryTree

WEEKDAYS: Final = (0.85, 0.85, 0.9, 0.95, 1.05, 1.25, 1.15)  # visits from Monday to Sunday, mean 1
_PEAK_HOURS: Final = ((8.0, 1.2), (13.0, 1.5), (20.5, 1.8))  # mean and spread of morning, noon and evening
_MAX_SESSIONS = 3  # per day
_MAX_STEPS = 12  # per session
_SESSIONS_PER_DAY = 0.17
_MORE_STEPS = 0.69  # chance that a session goes on after a step
_GAP = (120 * SECOND, 60 * SECOND, 600 * SECOND)  # between steps: least, mean of the rest, most
_PAUSE = 1800 * SECOND  # least time between two sessions
_LAST = 300 * SECOND  # every step of a day is at least so long before its end
# Chance to keep wanting the same leaf, to move to a successor; else a fresh wish among the interests.
_WITHIN = (0.55, 0.33)
_BETWEEN = (0.25, 0.5)
_SWITCH = 1 / 25  # chance per day that an interest is replaced
_SWITCH_TO_SUCCESSOR = 0.5
_STYLE_MEMORY = 0.97  # of the daily autoregressive walk around the lasting taste
_SCENES_FIRST = (0.45, 0.17, 0.03, 0.0, 0.35)  # in the order of `Scene`
_SCENES_LATER = (0.12, 0.17, 0.18, 0.07, 0.46)


@dataclass(frozen=True, slots=True)
class Moments:
    """Steps of sessions: at each, a user wants something. Rows are sorted by (user, time).

    Attributes:
        user: (n,) int64.
        time: (n,) int64 microseconds; one user's moments are at least two minutes apart.
        session: (n,) int64, counted per user and day.
        step: (n,) int64, counted per user and day; -1 for the state before the first visit.
        scene: (n,) int64, a `Scene`.
        intent: (n,) leaf that is wanted.
        previous: (n,) leaf that was wanted at the user's step before.
        interests: (n, 4) leaves of the lasting interests, the strongest first; they may coincide.
        desire: (n, 8) float32 in the items' style space.
        taste: (n, 8) float32, the part of the desire that outlasts the day.
        price_level: (n,) float32 preferred price position.
        thrift: (n,) float32 >= 0, dislike of other price positions.
    """

    user: Ints
    time: Ints
    session: Ints
    step: Ints
    scene: Ints
    intent: Indices
    previous: Indices
    interests: Indices
    desire: Floats
    taste: Floats
    price_level: Floats
    thrift: Floats

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Ints) -> Moments:
        """The moments of some rows, in that order."""
        return Moments(*(getattr(self, field.name)[rows] for field in fields(self)))

    def at_times(self, time: Ints) -> Moments:
        """The same wishes, asked about at other times."""
        return replace(self, time=time)

    @staticmethod
    def concatenate(parts: Sequence[Moments]) -> Moments:
        """All moments of several parts, in their order."""
        return Moments(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Moments)))

    @staticmethod
    def join(parts: Sequence[Moments]) -> Moments:
        """All moments of several parts, sorted by (user, time)."""
        whole = Moments.concatenate(parts)
        return whole.take(np.lexsort((whole.time, whole.user)))


@dataclass(frozen=True, slots=True)
class People:
    """A block of users: what lasts.

    Attributes:
        user: (n,) int64 global numbers.
        joined_at: (n,) int64 microseconds.
        rate: (n,) sessions per day, log-normal.
        weekend: (n,) exponent on the weekday factors.
        peaks: (n, 3) chance of morning, noon and evening.
        departments: (n, 3) favourite departments, the favourite first.
        taste: (n, 8) float32 lasting style.
        price_level: (n,) float32.
        thrift: (n,) float32.
    """

    user: Ints
    joined_at: Ints
    rate: Doubles
    weekend: Doubles
    peaks: Doubles
    departments: Indices
    taste: Floats
    price_level: Floats
    thrift: Floats


@dataclass(slots=True)
class Wishes:
    """What changes from moment to moment, one row per user of a block.

    Attributes:
        interests: (n, 4) leaves.
        taste: (n, 8) today's style.
        mission: (n, 8) the style of the present wish, kept while it moves from leaf to successor.
        intent: (n,) leaf.
    """

    interests: Indices
    taste: Floats
    mission: Floats
    intent: Indices


def meet(size: WorldSize, seed: int, block: int, tree: CategoryTree) -> tuple[People, Wishes]:
    """The users of a block before day 0."""
    rng = stream(seed, Stream.TRAITS, block)
    user = np.arange(block * size.block, min((block + 1) * size.block, size.users), dtype=np.int64)
    count = len(user)
    late = rng.random(count) >= 0.85
    joined = np.where(
        late,
        START + rng.integers(0, 2 * size.days * DAY, size=count),
        START - rng.integers(1, 500 * DAY, size=count),
    )
    share = np.array([tree.popularity[a:b].sum() for a, b in zip(tree.first, tree.first[1:], strict=False)])
    # The three largest of weight-scaled exponential races are a draw without replacement.
    race = rng.exponential(size=(count, len(share))) / share
    departments = np.argsort(race, axis=1)[:, :3].astype(np.int32)
    people = People(
        user=user,
        joined_at=joined.astype(np.int64),
        rate=_SESSIONS_PER_DAY * rng.lognormal(-0.245, 0.7, size=count),
        weekend=rng.normal(1.0, 0.7, size=count),
        peaks=rng.dirichlet((1.0, 1.0, 2.0), size=count),
        departments=departments,
        taste=(0.8 * rng.standard_normal((count, STYLE))).astype(np.float32),
        price_level=rng.normal(0.0, 0.8, size=count).astype(np.float32),
        thrift=rng.gamma(4.0, 0.1, size=count).astype(np.float32),
    )
    interests = np.stack([_fresh_interest(people, tree, rng) for _ in range(INTERESTS)], axis=1)
    wishes = Wishes(
        interests=interests,
        taste=people.taste,
        mission=rng.standard_normal((count, STYLE)).astype(np.float32),
        intent=interests[:, 0].copy(),
    )
    return people, wishes


def before_first_visit(people: People, wishes: Wishes) -> Moments:
    """The moments that answer for times before the first step: one per user, long before day 0."""
    everybody = np.arange(len(people.user))
    return _moments(people, wishes, everybody, np.zeros((len(everybody), STYLE), dtype=np.float32))


def live_day(people: People, wishes: Wishes, tree: CategoryTree, day: int, rng: np.random.Generator) -> Moments:
    """Advance `wishes` in place by one day and return the day's moments."""
    _drift(people, wishes, tree, rng)
    schedule = _schedule(people, day, rng)
    parts: list[Moments] = []
    for step in range(int(schedule.step.max(initial=-1)) + 1):
        now = np.flatnonzero(schedule.step == step)
        rows, begins = schedule.row[now], schedule.begins[now]
        previous = wishes.intent[rows]
        _move_on(wishes, rows, begins, tree, rng)
        jitter = rng.standard_normal((len(rows), STYLE), np.float32)
        moments = _moments(people, wishes, rows, jitter)
        parts.append(
            replace(
                moments,
                time=schedule.time[now],
                session=schedule.session[now],
                step=schedule.step[now],
                scene=_scenes(begins, rng),
                previous=previous,
            )
        )
    return Moments.join(parts) if parts else before_first_visit(people, wishes).take(np.zeros(0, np.int64))


def _moments(people: People, wishes: Wishes, rows: Ints, jitter: Floats) -> Moments:
    """What the users of some rows want now; time, session and scene are left to the caller."""
    nothing = np.zeros(len(rows), dtype=np.int64)
    desire = np.float32(0.55) * wishes.taste[rows] + np.float32(0.8) * wishes.mission[rows] + np.float32(0.4) * jitter
    return Moments(
        user=people.user[rows],
        time=nothing,
        session=nothing,
        step=nothing - 1,
        scene=nothing,
        intent=wishes.intent[rows],
        previous=wishes.intent[rows],
        interests=wishes.interests[rows],
        desire=desire,
        taste=wishes.taste[rows],
        price_level=people.price_level[rows],
        thrift=people.thrift[rows],
    )


@dataclass(frozen=True, slots=True)
class _Schedule:
    """Steps of one day, sorted by row and time.

    Attributes:
        row: of the block.
        time: microseconds.
        session: counted per row.
        step: counted per row.
        begins: the step is the first of its session.
    """

    row: Ints
    time: Ints
    session: Ints
    step: Ints
    begins: Bools


def _schedule(people: People, day: int, rng: np.random.Generator) -> _Schedule:
    """When everybody steps by on a day; sessions of one user do not overlap and end before midnight."""
    begin = START + day * DAY
    row, start = _session_starts(people, day, rng)
    steps = np.minimum(rng.geometric(1 - _MORE_STEPS, size=len(row)), _MAX_STEPS)
    session = np.arange(len(row)) - np.searchsorted(row, row)
    place = np.repeat(np.arange(len(row)), steps)
    head = np.concatenate([[0], np.cumsum(steps)])[place]
    least, mean, most = _GAP
    gaps = np.minimum(least + rng.exponential(mean, size=len(place)).astype(np.int64), most)
    offset = np.cumsum(gaps)
    within = offset - offset[head]
    length = np.zeros(len(row), dtype=np.int64)
    np.maximum.at(length, place, within)
    for ordinal in range(1, _MAX_SESSIONS):
        later = np.flatnonzero(session == ordinal)
        start[later] = np.maximum(start[later], start[later - 1] + length[later - 1] + _PAUSE)
    overrun = np.zeros(len(people.user), dtype=np.int64)
    np.maximum.at(overrun, row, start + length - (DAY - _LAST))
    time = begin + np.maximum(start - overrun[row], 0)[place] + within
    step = np.arange(len(place)) - np.searchsorted(row[place], row[place])
    return _Schedule(row[place], time, session[place], step, np.arange(len(place)) == head)


def _session_starts(people: People, day: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Row and microseconds since midnight of every session of a day, sorted."""
    weekday = np.asarray(WEEKDAYS)[day % 7]
    here = people.joined_at <= START + day * DAY
    rate = np.where(here, people.rate * weekday**people.weekend, 0.0)
    sessions = np.minimum(rng.poisson(rate), _MAX_SESSIONS)
    row = np.repeat(np.arange(len(sessions)), sessions)
    peak = (rng.random((len(row), 1)) > np.cumsum(people.peaks[row], axis=1)[:, :2]).sum(axis=1)
    mean, spread = np.asarray(_PEAK_HOURS)[peak].T
    weekend = day % 7 >= 5
    hour = np.clip(mean + weekend + spread * rng.standard_normal(len(row)), 0.0, 23.9)
    order = np.lexsort((hour, row))
    return row[order], (hour[order] * HOUR).astype(np.int64)


def _drift(people: People, wishes: Wishes, tree: CategoryTree, rng: np.random.Generator) -> None:
    """One night: tastes walk, some interests give way to their successors or to something new."""
    count = len(people.user)
    noise = rng.standard_normal((count, STYLE)).astype(np.float32)
    spread = np.float32(0.8 * np.sqrt(1 - _STYLE_MEMORY**2) * 0.6)
    pull = np.float32(1 - _STYLE_MEMORY)
    wishes.taste = wishes.taste + pull * (people.taste - wishes.taste) + spread * noise
    wishes.interests = wishes.interests.copy()
    for slot in range(INTERESTS):
        switched = np.flatnonzero(rng.random(count) < _SWITCH)
        old = wishes.interests[switched, slot]
        fresh = _fresh_interest(people, tree, rng)[switched]
        onward = rng.random(len(switched)) < _SWITCH_TO_SUCCESSOR
        wishes.interests[switched, slot] = np.where(onward, _successor(old, tree, rng), fresh)


def _move_on(wishes: Wishes, rows: Ints, begins: Bools, tree: CategoryTree, rng: np.random.Generator) -> None:
    """The next step of the chain of intents: stay, go to a successor, or start afresh from an interest."""
    stay, onward = np.where(begins[:, None], _BETWEEN, _WITHIN).T
    draw = rng.random(len(rows))
    slots = np.searchsorted(np.cumsum(INTEREST_WEIGHTS), rng.random(len(rows)), side="right").clip(max=INTERESTS - 1)
    fresh = draw >= stay + onward
    successor = _successor(wishes.intent[rows], tree, rng)
    moved = np.where(fresh, wishes.interests[rows, slots], successor)
    wishes.intent[rows] = np.where(draw < stay, wishes.intent[rows], moved)
    mission = rng.standard_normal((len(rows), STYLE)).astype(np.float32)
    wishes.mission[rows] = np.where(fresh[:, None], mission, wishes.mission[rows])


def _successor(leaves: Indices, tree: CategoryTree, rng: np.random.Generator) -> Indices:
    drawn = np.searchsorted(np.cumsum(SUCCESSOR_WEIGHTS), rng.random(len(leaves)), side="right")
    chosen: Indices = tree.successors[leaves, drawn.clip(max=SUCCESSORS - 1)]
    return chosen


def _fresh_interest(people: People, tree: CategoryTree, rng: np.random.Generator) -> Indices:
    count = len(people.user)
    favourite = np.searchsorted((0.65, 0.9), rng.random(count), side="right")
    return tree.draw(people.departments[np.arange(count), favourite], rng)


def _scenes(begins: Bools, rng: np.random.Generator) -> Ints:
    thresholds = np.where(begins[:, None], np.cumsum(_SCENES_FIRST), np.cumsum(_SCENES_LATER))
    drawn: Ints = (rng.random((len(begins), 1)) >= thresholds[:, : int(Scene.BROWSE)]).sum(axis=1)
    return drawn
