"""The marketplace as a library: who visits when, what they want, and what they do with a slate."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.datasets.marketplace import behaviour
from recsys.datasets.marketplace.catalog import Catalog, Shelves, build_catalog, stock_shelves
from recsys.datasets.marketplace.people import Moments, before_first_visit, live_day, meet
from recsys.datasets.marketplace.policy import Slates, choose_slates
from recsys.datasets.marketplace.settings import (
    DAY,
    EXPLORATION,
    LAST_DAY,
    SIZES,
    SLATE,
    START,
    Bools,
    Doubles,
    Indices,
    Ints,
    Scene,
    Stream,
    WorldSize,
    day_of,
    stream,
)
from recsys.errors import ConfigError, DataError, InputError
from recsys.storage import read_json

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from recsys.datasets.marketplace.people import People, Wishes

WORLD_FILE: Final = "world.json"
_KEPT_BLOCKS = 8
_KEPT_SHELVES = 400


@dataclass(slots=True)
class _Life:
    """The moments of one block of users, as far as they have been lived."""

    people: People
    wishes: Wishes
    days: list[Moments]  # before the first visit, then one entry per day
    whole: Moments | None = None


class Marketplace:
    """One world; everything about it is a function of size and seed.

    Users and items are dense numbers; `user_ids` and `item_ids` name them as the tables do. Times are UTC
    microseconds. Methods take arrays of n questions and answer them in one go. The object keeps what it has
    worked out and is not safe for several threads.

    Args:
        size: how much world; one of `SIZES` or your own.
        seed: which world.

    Attributes:
        catalog: every item there will ever be, in the order of creation.
    """

    def __init__(self, size: WorldSize, seed: int) -> None:
        if seed < 0:
            raise ConfigError("a seed is not negative", field="seed", value=seed, remedy="choose 0 or more")
        self.size = size
        self.seed = seed
        self.catalog: Catalog = build_catalog(size, seed)
        self._lives: OrderedDict[int, _Life] = OrderedDict()
        self._shelves: OrderedDict[int, Shelves] = OrderedDict()

    @classmethod
    def open(cls, tables: Path) -> Marketplace:
        """The world from which a directory of tables was simulated.

        Raises:
            DataError: the tables were not simulated.
        """
        path = tables / WORLD_FILE
        if not path.is_file():
            raise DataError(
                "these tables were not simulated",
                field="data",
                value=str(tables),
                remedy="run `windfire simulate` and give its directory",
            )
        value = read_json(path)
        return cls(WorldSize(**value["size"]), value["seed"])

    def user_ids(self, users: npt.ArrayLike) -> list[str]:
        """The ids of users in the tables."""
        return [f"u{user:07d}" for user in np.atleast_1d(np.asarray(users)).tolist()]

    def item_ids(self, items: npt.ArrayLike) -> list[str]:
        """The ids of items in the tables."""
        return [f"i{item:07d}" for item in np.atleast_1d(np.asarray(items)).tolist()]

    def users_of(self, ids: list[str]) -> Ints:
        """The numbers of user ids.

        Raises:
            InputError: an id of nobody.
        """
        return _numbers(ids, "u", self.size.users, "user_id")

    def items_of(self, ids: list[str]) -> Indices:
        """The numbers of item ids.

        Raises:
            InputError: an id of nothing.
        """
        return _numbers(ids, "i", len(self.catalog), "item_id").astype(np.int32)

    def people(self, block: int) -> People:
        """The lasting traits of a block of users."""
        return self._live(block, 0).people

    def moments(self, block: int, from_day: int, days: int) -> Moments:
        """When the users of a block come by on some days, and what they want then; sorted by (user, time)."""
        life = self._live(block, from_day + days)
        before = life.days[0].take(np.zeros(0, dtype=np.int64))
        return Moments.join([before, *life.days[from_day + 1 : from_day + days + 1]])

    def visits(self, from_day: int, days: int) -> Moments:
        """The moments of all users at which a recommender is asked, that is in any scene but browsing."""
        parts = [self.moments(block, from_day, days) for block in range(self.size.blocks)]
        whole = Moments.join(parts)
        return whole.take(np.flatnonzero(whole.scene != Scene.BROWSE))

    def at(self, users: npt.ArrayLike, times: npt.ArrayLike) -> Moments:
        """What users want at given times: the state since their latest step.

        Args:
            users: (n,) user numbers.
            times: (n,) microseconds, from day 0 to day 3,000.

        Returns:
            (n,) moments, with the given times.
        """
        user, time = (np.atleast_1d(np.asarray(value, dtype=np.int64)) for value in (users, times))
        user, time = np.broadcast_arrays(user, time)
        _check_range("user", user, 0, self.size.users)
        _check_range("time", time, START, START + LAST_DAY * DAY)
        if not len(user):
            return self.moments(0, 0, 0)
        blocks = user // self.size.block
        rows: list[Ints] = []
        parts: list[Moments] = []
        for block in np.unique(blocks).tolist():
            asked = np.flatnonzero(blocks == block)
            lived = self._lived(block, int(day_of(time[asked]).max()) + 1)
            first = int(lived.user[0])
            keys = _key(lived.user - first, lived.time)
            parts.append(lived.take(np.searchsorted(keys, _key(user[asked] - first, time[asked]), side="right") - 1))
            rows.append(asked)
        order = np.argsort(np.concatenate(rows), kind="stable")
        found = Moments.concatenate(parts).take(order)
        return found.at_times(time)

    def utility(self, users: npt.ArrayLike, items: npt.ArrayLike, scene: npt.ArrayLike, time: npt.ArrayLike) -> Doubles:
        """The true log odds that make users click, whether or not an item is on sale.

        Args:
            users: (n,) user numbers.
            items: (n, m) item numbers, or (m,) for the same items everywhere; -1 gives minus infinity.
            scene: a `Scene`, or (n,) of them.
            time: (n,) microseconds, or one.

        Returns:
            (n, m) float64.
        """
        moments, slates, scenes = self._question(users, items, scene, time)
        return behaviour.utility(self.catalog, moments, slates, scenes)

    def click_probability(
        self, users: npt.ArrayLike, slates: npt.ArrayLike, scene: npt.ArrayLike, time: npt.ArrayLike
    ) -> Doubles:
        """The exact chance of a click on every place of the slates, examination included; (n, k) float64."""
        moments, shown, scenes = self._question(users, slates, scene, time)
        utilities = behaviour.utility(self.catalog, moments, shown, scenes)
        chance = behaviour.examination(scenes, shown.shape[1]) * behaviour.click_given_examined(utilities, scenes)
        return np.where(shown >= 0, chance, 0.0)

    def respond(
        self,
        users: npt.ArrayLike,
        slates: npt.ArrayLike,
        scene: npt.ArrayLike,
        time: npt.ArrayLike,
        rng: np.random.Generator,
    ) -> behaviour.Response:
        """What users do with the slates of any recommender.

        Args:
            users: (n,) user numbers.
            slates: (n, k) item numbers, position 0 first, -1 for an empty place; or (k,) for the same everywhere.
            scene: a `Scene`, or (n,) of them.
            time: (n,) microseconds, or one.
            rng: where the draws come from; the world keeps none of its own for this.
        """
        moments, shown, scenes = self._question(users, slates, scene, time)
        return behaviour.respond(self.catalog, moments, shown, scenes, rng)

    def shelves(self, day: int) -> Shelves:
        """What is on sale on a day, as the logged recommender sees it."""
        if day not in self._shelves:
            self._shelves[day] = stock_shelves(self.catalog, day, stream(self.seed, Stream.SHELVES, day))
        self._shelves.move_to_end(day)
        while len(self._shelves) > _KEPT_SHELVES:
            self._shelves.popitem(last=False)
        return self._shelves[day]

    def logged_slates(
        self,
        day: int,
        moments: Moments,
        rng: np.random.Generator,
        *,
        length: int = SLATE,
        exploration: float = EXPLORATION,
    ) -> Slates:
        """What the recommender of the log shows at moments of one day, with propensities."""
        return choose_slates(
            self.catalog, self.shelves(day), moments, moments.scene, rng, length=length, exploration=exploration
        )

    def available(self, items: npt.ArrayLike, time: int) -> Bools:
        """Whether items are on sale at a time."""
        index = np.asarray(items)
        on_sale: Bools = (self.catalog.created_at[index] <= time) & (self.catalog.available_until[index] > time)
        return on_sale

    def _question(
        self, users: npt.ArrayLike, items: npt.ArrayLike, scene: npt.ArrayLike, time: npt.ArrayLike
    ) -> tuple[Moments, Indices, Ints]:
        moments = self.at(users, time)
        index = np.asarray(items, dtype=np.int32)
        index = np.broadcast_to(index, (len(moments), index.shape[-1]))
        _check_range("item", index, -1, len(self.catalog))
        scenes = np.broadcast_to(np.asarray(scene, dtype=np.int64), (len(moments),))
        _check_range("scene", scenes, 0, len(Scene))
        return moments, index, scenes

    def _live(self, block: int, days: int) -> _Life:
        """The life of a block through at least the first `days` days."""
        if block not in self._lives:
            people, wishes = meet(self.size, self.seed, block, self.catalog.tree)
            self._lives[block] = _Life(people, wishes, [before_first_visit(people, wishes)])
        life = self._lives[block]
        self._lives.move_to_end(block)
        while len(self._lives) > _KEPT_BLOCKS:
            self._lives.popitem(last=False)
        while len(life.days) <= days:
            day = len(life.days) - 1
            rng = stream(self.seed, Stream.LIFE, block, day)
            life.days.append(live_day(life.people, life.wishes, self.catalog.tree, day, rng))
            life.whole = None
        return life

    def _lived(self, block: int, days: int) -> Moments:
        life = self._live(block, days)
        if life.whole is None:
            life.whole = Moments.join(life.days)
        return life.whole


def named_size(name: str, *, items: int | None = None, users: int | None = None) -> WorldSize:
    """One of `SIZES`, with other numbers of items or users where given.

    Raises:
        ConfigError: no such size, or a number out of range.
    """
    if name not in SIZES:
        raise ConfigError("no such size", field="size", value=name, remedy=f"choose one of {', '.join(SIZES)}")
    base = SIZES[name]
    return WorldSize(
        name=base.name,
        items=base.items if items is None else items,
        users=base.users if users is None else users,
        days=base.days,
        kinds=base.kinds,
        modifiers=base.modifiers,
        block=base.block,
    )


def _key(user: Ints, time: Ints) -> Ints:
    """One sortable number per (user of a block, time); a time before `START` becomes the user's least."""
    return user * (LAST_DAY * DAY) + np.maximum(time - START, 0)


def _check_range(field: str, values: npt.NDArray[np.integer], low: int, high: int) -> None:
    wrong = (values < low) | (values >= high)
    if wrong.any():
        raise InputError(
            f"{field} out of range",
            field=field,
            value=int(values[wrong][0]),
            remedy=f"give numbers from {low} to {high - 1}",
        )


def _numbers(ids: list[str], letter: str, count: int, field: str) -> Ints:
    numbers = np.empty(len(ids), dtype=np.int64)
    for row, name in enumerate(ids):
        number = int(name[1:]) if name[1:].isdecimal() else -1
        if not 0 <= number < count or name != f"{letter}{number:07d}":
            raise InputError("no such id in this world", field=field, value=name, remedy="use the tables' ids")
        numbers[row] = number
    return numbers
