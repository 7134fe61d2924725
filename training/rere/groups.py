"""Groups of rollouts: what rollout, reward and update hand to each other, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

NO_ITEM: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """n groups of at most G rollouts, one group per sample.

    A group's key is its sample, never its history: two samples with the same history keep their own targets.

    Attributes:
        samples: (n, 2) int64 user row and position of the target among the user's events.
        targets: (n,) int64 items.
        items: (n, G) int64, the policy's most probable first; -1 where fewer than G were to be had.
        hinted: (n,) int64 leading codes of the target that were given.
        log_probs: (n, G, L) float32 of the rollout's policy, per level; 0 where there is no item.
        rewards: (n, G) float32; 0 where there is no item.
        advantages: (n, G) float32; 0 where there is no item.

    Raises:
        DataError: arrays that do not fit each other.
    """

    samples: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    hinted: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        count, group = self.items.shape
        wanted = {
            "samples": (count, 2),
            "targets": (count,),
            "hinted": (count,),
            "log_probs": (count, group, self.log_probs.shape[-1]),
            "rewards": (count, group),
            "advantages": (count, group),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise DataError(
                    f"{count} groups of {group} need an array of shape {shape}",
                    field=name,
                    value=getattr(self, name).shape,
                    remedy="a group is never split: give all its rollouts",
                )

    def __len__(self) -> int:
        """How many groups."""
        return len(self.items)

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(n, G) where there is an item."""
        valid: npt.NDArray[np.bool_] = self.items != NO_ITEM
        return valid

    @property
    def idle(self) -> npt.NDArray[np.bool_]:
        """(n,) groups without any advantage."""
        found: npt.NDArray[np.bool_] = (self.advantages == 0).all(axis=1)
        return found

    def some(self, rows: npt.NDArray[np.int64]) -> Groups:
        """Those of some rows, whole."""
        return Groups(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    @property
    def learned(self) -> npt.NDArray[np.bool_]:
        """(n, G, L) the codes that the policy chose itself: no hint, no empty place."""
        own = np.arange(self.log_probs.shape[2]) >= self.hinted[:, None]  # (n, L)
        learned: npt.NDArray[np.bool_] = self.valid[:, :, None] & own[:, None, :]
        return learned


def joined(parts: Sequence[Groups]) -> Groups:
    """One batch of several, in their order."""
    return Groups(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Groups)})


def has_hit(items: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(n,) whether a group holds its target: items (n, G), targets (n,)."""
    found: npt.NDArray[np.bool_] = (items == targets[:, None]).any(axis=1)
    return found


def diversity(items: npt.NDArray[np.int64]) -> float:
    """Mean share of distinct items among a group's G places: items (n, G), -1 = none."""
    distinct = [len(np.unique(row[row != NO_ITEM])) for row in items]
    return float(np.mean(distinct)) / int(items.shape[1])
