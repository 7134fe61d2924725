"""What the catalogue log says of an item at a sequence number and time; nothing is shared with the service's rows."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from recsys.catalog.changes import Delete, Expire, Stock, Upsert

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from recsys.catalog.changes import Change
    from recsys.catalog.index import ItemIndex


@dataclass(frozen=True, slots=True)
class Standing:
    """An item behind a change; times are UTC microseconds.

    Attributes:
        deleted: it is gone.
        stock: pieces; None: not counted.
        begins: shown from then on, inclusive; None: always.
        ends: shown until then, exclusive; None: for ever.
    """

    deleted: bool = False
    stock: int | None = None
    begins: int | None = None
    ends: int | None = None

    def hidden(self, first: int, last: int) -> bool:
        """Whether it may be shown at no time from `first` to `last`."""
        if self.deleted or self.stock == 0:
            return True
        earliest = first if self.begins is None else max(first, self.begins)
        return earliest > last or (self.ends is not None and self.ends <= earliest)


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer.

    Attributes:
        items: ids that were shown.
        sequence: of the catalogue that it names: all changes before it are in.
        known: all changes before it were acknowledged before the request was sent.
        first: UTC microseconds, not after the request was sent.
        last: UTC microseconds, not before its answer came.
    """

    items: Sequence[str]
    sequence: int
    known: int
    first: int
    last: int


class Replay:
    """Follows the log beside a snapshot in which every item may be shown.

    Args:
        snapshot: ids of its items.
        first: sequence number of the first change behind it.
    """

    def __init__(self, snapshot: ItemIndex, first: int = 0) -> None:
        self.end = first
        self._snapshot = snapshot
        self._numbers: dict[str, list[int]] = defaultdict(list)
        self._standings: dict[str, list[Standing]] = defaultdict(list)

    def follow(self, changes: Iterable[tuple[int, Change]]) -> None:
        """Take in what comes next in the log."""
        for number, change in changes:
            item = change.item_id
            known = self._standings[item]
            self._numbers[item].append(number)
            known.append(_behind(known[-1] if known else Standing(), change))
            self.end = number + 1

    def at(self, item: str, sequence: int) -> Standing | None:
        """An item behind all changes before a sequence number; None: there is none."""
        place = bisect_right(self._numbers.get(item, ()), sequence - 1)
        if place:
            return self._standings[item][place - 1]
        return Standing() if int(self._snapshot.lookup([item])[0]) >= 0 else None

    def wrong(self, answer: Judged) -> list[str]:
        """Items of an answer that could not be shown at any time while it was asked for.

        Neither by the catalogue that it names, nor by all that was acknowledged before it was asked for.
        """
        catalogues = {answer.sequence, max(answer.sequence, answer.known)}
        return [item for item in answer.items if any(self._hides(item, at, answer) for at in catalogues)]

    def _hides(self, item: str, sequence: int, answer: Judged) -> bool:
        at = self.at(item, sequence)
        return at is None or at.hidden(answer.first, answer.last)


def _behind(before: Standing, change: Change) -> Standing:
    match change:
        case Upsert():
            return Standing(False, change.stock, change.available_from, change.available_until)
        case Expire():
            return replace(before, ends=change.until)
        case Stock():
            return replace(before, stock=change.stock)
        case Delete():
            return replace(before, deleted=True)
