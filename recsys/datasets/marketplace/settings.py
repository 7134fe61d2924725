"""The fixed numbers of the simulated marketplace: sizes, scenes, clock and streams of randomness."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from recsys.errors import ConfigError

Ints: TypeAlias = npt.NDArray[np.int64]
Indices: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
START: Final = 1_736_121_600 * SECOND  # Monday, 6 January 2025, 00:00 UTC: day 0 begins
LAST_DAY: Final = 3_000  # nothing is simulated on or after this day
NEVER: Final = int(np.iinfo(np.int64).max)

STYLE: Final = 8  # dimensions of the space that items, desires and missions share
INTERESTS: Final = 4  # sub-categories that a user is interested in at a time
INTEREST_WEIGHTS: Final = (0.4, 0.3, 0.2, 0.1)
SUCCESSORS: Final = 3  # sub-categories that a sub-category leads to
SUCCESSOR_WEIGHTS: Final = (0.6, 0.25, 0.15)
SLATE: Final = 6  # items that the logged recommender shows per request
EXPLORATION: Final = 0.01  # share of slots that are filled uniformly from everything that is available


class Scene(IntEnum):
    """The surface of the app; `BROWSE` is the user's own way through listings, without any recommender."""

    HOME = 0
    SEARCH = 1
    ITEM = 2
    CART = 3
    BROWSE = 4

    @property
    def label(self) -> str:
        """The scene's word in the tables."""
        return self.name.lower()


class Stream(IntEnum):
    """Independent streams of randomness; the first word of a spawn key."""

    TREE = 0
    BRANDS = 1
    ITEMS = 2
    TITLES = 3
    TRAITS = 4
    LIFE = 5
    LOG = 6
    SHELVES = 7


def stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of one named piece of the world; the same for any order or process of evaluation."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(frozen=True, slots=True)
class WorldSize:
    """How much world there is.

    Two worlds with equal size and seed are equal, whatever part of them is simulated.

    Attributes:
        name: shown in the manifest.
        items: items that exist at the end of day `days`; three quarters of them from before day 0. As many again
            per day appear on the `days` days after that.
        users: users; 85 % joined before day 0, the others until day 2 * `days`.
        days: the days that are simulated unless another number is asked for.
        kinds: kinds of product per department, 1 to 6; there are 12 departments.
        modifiers: sub-categories per kind, 1 to 20.
        block: users per block; a block is the unit of randomness and of parallel work.
    """

    name: str
    items: int
    users: int
    days: int
    kinds: int
    modifiers: int
    block: int

    def __post_init__(self) -> None:
        limits = {
            "items": (100, 10**8),
            "users": (1, 10**8),
            "days": (1, 1000),
            "kinds": (1, 6),
            "modifiers": (1, 20),
            "block": (1, 30_000),
        }
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise ConfigError(
                    f"a marketplace needs {low} <= {field} <= {high}",
                    field=field,
                    value=value,
                    remedy=f"choose a number from {low} to {high}",
                )

    @property
    def blocks(self) -> int:
        """Number of blocks of users."""
        return -(-self.users // self.block)


SIZES: Final[dict[str, WorldSize]] = {
    "tests": WorldSize("tests", items=300, users=200, days=30, kinds=1, modifiers=2, block=64),
    "demo": WorldSize("demo", items=5_000, users=5_000, days=60, kinds=4, modifiers=2, block=1_250),
    "large": WorldSize("large", items=1_000_000, users=1_000_000, days=60, kinds=6, modifiers=20, block=2_500),
}


def day_of(time: Ints) -> Ints:
    """The day number of UTC microseconds; day 0 begins at `START`."""
    return (time - START) // DAY
