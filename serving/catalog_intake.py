"""Changes of items: decided, encoded, written durably, applied; in this order, for a group at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from recsys.catalog.changes import Delete, Encoded, Upsert, check_change
from recsys.errors import CorruptionError, InputError, UnavailableError, WindfireError
from serving.item_changes import ItemChange, ItemChanged, Outcome
from serving.live_items import words

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from recsys.catalog.changes import Change
    from recsys.catalog.log import CatalogLog, CatalogWriter
    from serving.live_items import LiveItems

_AT_ONCE: Final = 64  # changes under one lock
_log = structlog.stdlib.get_logger(__name__)


class CatalogIntake:
    """Writes groups of changes; for the thread of a `GroupWriter`.

    Args:
        log: of the catalogue.
        items: of the bundle that runs; None before the first.
    """

    def __init__(self, log: CatalogLog, items: Callable[[], LiveItems | None]) -> None:
        self._log, self._items = log, items

    def write(self, group: list[ItemChange]) -> list[ItemChanged | Exception]:
        """Write what can be written; one result per change, or the exception that says why it was not made.

        Other writers get a turn between parts of a large group.
        """
        results: list[ItemChanged | Exception] = []
        for start in range(0, len(group), _AT_ONCE):
            part = group[start : start + _AT_ONCE]
            try:
                results += self._write(part)
            except Exception as error:  # noqa: BLE001 - raised again where each change's caller waits
                results += [error] * len(part)
        return results

    def _write(self, group: list[ItemChange]) -> list[ItemChanged | Exception]:
        """Write a part, in one flush.

        Raises:
            UnavailableError: no bundle runs, or the log refuses or is damaged: nothing of it is written.
        """
        items = self._items()
        if items is None:
            raise UnavailableError("no bundle is loaded")
        try:
            with self._log.writing() as writer:
                _catch_up(items)
                plan = _planned(items, group, writer)
        except CorruptionError as error:
            _log.error("items_refused", error=str(error))
            raise UnavailableError("the catalogue log is damaged", remedy=str(error)) from error
        _catch_up(items)  # not needed by those who ask later; spares the next batch the work
        return [plan.result(place) for place in range(len(group))]


def _planned(items: LiveItems, group: list[ItemChange], writer: CatalogWriter) -> _Plan:
    """Decide and write; what could not be written has taken no semantic ID."""
    plan = _Plan(items)
    try:
        for change in group:
            plan.add(change)
        if plan.changes:
            writer.append(plan.changes)
    except BaseException:
        plan.undo()
        _log.exception("items_refused", items=len(plan.changes))
        raise
    return plan


def _catch_up(items: LiveItems) -> None:
    try:
        items.follow()
    except (WindfireError, OSError) as error:
        _log.error("items_refused", error=str(error))
        raise UnavailableError("the catalogue log cannot be followed", remedy=str(error)) from error


class _Plan:
    """What a group of changes comes to. Nobody else writes meanwhile, so what is decided holds until it is applied."""

    def __init__(self, items: LiveItems) -> None:
        self._items = items
        self._first = items.sequence
        self._there: dict[str, bool] = {}  # of items that this group has touched
        self._given: set[str] = set()  # new items of this group
        self._outcomes: list[tuple[Outcome, str, int] | Exception] = []
        self.changes: list[Change] = []

    def add(self, asked: ItemChange) -> None:
        """Decide a change."""
        try:
            outcome, reason = self._decided(asked)
        except InputError as error:
            self._outcomes.append(error)
            return
        self._outcomes.append((outcome, reason, self._first + len(self.changes)))

    def undo(self) -> None:
        """Nothing of it was written: other workers know of no semantic ID that it has given."""
        with self._items.guard:
            if self._given and (encoder := self._items.encoder) is not None:
                for item_id in self._given:
                    encoder.placement.give_back(item_id)

    def result(self, place: int) -> ItemChanged | Exception:
        """What became of a change of the group."""
        decided = self._outcomes[place]
        if isinstance(decided, Exception):
            return decided
        outcome, reason, sequence = decided
        return ItemChanged(outcome=outcome, catalog_version=self._items.version_at(sequence), reason=reason)

    def _decided(self, asked: ItemChange) -> tuple[Outcome, str]:
        check_change(asked.change)
        item_id, now = asked.change.item_id, time.time_ns() // 1_000
        with self._items.guard:
            indexed, there = self._items.known(item_id)
        indexed, there = indexed or item_id in self._given, self._there.get(item_id, there)
        if isinstance(asked.change, Delete):
            return self._delete(item_id, now) if there else ("missing", "")
        if there and asked.only_new:
            return "exists", ""
        change = msgspec.structs.replace(asked.change, time=now, encoded=None)
        encoded: Encoded | None
        if indexed:
            encoded = self._read_again(change)
        else:
            if self._items.encoder is None or self._items.refused is not None:
                return "no_encoder", self._items.refused or ""
            vector = self._vector(change)
            if vector is None:
                return "no_words", ""
            with self._items.guard:
                encoded = self._items.encoder.place(item_id, vector)
            self._given.add(item_id)
        self.changes.append(msgspec.structs.replace(change, encoded=encoded))
        self._there[item_id] = True
        return ("replaced" if there else "created"), ""

    def _delete(self, item_id: str, now: int) -> tuple[Outcome, str]:
        self.changes.append(Delete(item_id=item_id, time=now))
        self._there[item_id] = False
        return "deleted", ""

    def _read_again(self, change: Upsert) -> Encoded | None:
        """The vector of an item that is known, where its words are others than before."""
        items = self._items
        with items.guard:
            before = items.row(change.item_id)
        if items.encoder is None or before is None or words(before) == words(before.after(change)):
            return None
        vector = self._vector(change)
        return None if vector is None else items.encoder.written(vector)

    def _vector(self, change: Upsert) -> npt.NDArray[np.float32] | None:
        """Not under the guard: a language model takes its time."""
        try:
            return None if self._items.encoder is None else self._items.encoder.vector(change)
        except InputError as error:
            if error.field != "text":
                raise
            return None
