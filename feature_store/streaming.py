"""From the event log into a history: each event's effect exactly once, whatever dies or is read twice."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from feature_store.entries import ORDER_FIELDS
from feature_store.store import Merge
from recsys.errors import ConfigError
from recsys.records import EVENTS, POSITIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from feature_store.history import EventSource
    from feature_store.store import FeatureStore
    from feature_store.views import View
    from recsys.event_log import ConsumerOffsets

_BATCH: Final = 2_000


class HistoryStream:
    """A consumer of the event log that fills a history view of users.

    Its offset is committed after the store acknowledged, and an entry that is merged again changes nothing. So nothing
    counts twice inside what the view holds (its newest N entries, none older than `keep`), and events that a store
    acknowledged and lost, in a failover, are brought back by `rewind`.

    Args:
        log: where the events come from.
        store: where they go.
        offsets: remember how far it came.
        view: a history of users; its fields are taken from the event's fields of the same name.
        name: of the consumer; the view's label unless given.
        actions: that belong to the history.
        batch: events per merge and commit.

    Raises:
        ConfigError: no history of users, or a field that no event has.
    """

    def __init__(
        self,
        log: EventSource,
        store: FeatureStore,
        offsets: ConsumerOffsets,
        view: View,
        *,
        name: str | None = None,
        actions: Iterable[str] = POSITIVE_ACTIONS,
        batch: int = _BATCH,
    ) -> None:
        if view.history is None or view.entity != "user":
            raise ConfigError("events fill histories of users", field="view", value=view.label,
                              remedy="declare the view with entity user and history=N")  # fmt: skip
        if strange := sorted(set(view.names) - set(EVENTS.names)):
            raise ConfigError("no event has these fields", field="fields", value=strange,
                              remedy=f"take some of {', '.join(EVENTS.names)}")  # fmt: skip
        self._log = log
        self._store = store
        self._offsets = offsets
        self._view = view
        self._name = name or f"{view.name}-{view.version}"
        self._actions = frozenset(actions)
        self._batch = batch

    def catch_up(self) -> int:
        """Apply what the log holds behind the committed offset; returns the number of events read.

        Raises:
            UnavailableError: the store did not acknowledge; the next call begins with the same events.
            InputError: an event that does not fit the view, or lies more than five minutes ahead of the clock.
        """
        count = 0
        events = self._log.read(self._offsets.get(self._name))
        while chunk := list(islice(events, self._batch)):
            self._store.merge(self._merges(event for _, event in chunk))
            self._offsets.commit(self._name, chunk[-1][0] + 1)
            count += len(chunk)
        return count

    def rewind(self, since: int, start: int = 0) -> int:
        """Let the next `catch_up` begin with the first event recorded at or after `since`, but never later than now.

        Call it after a failover, with a time before the old master died.

        Args:
            since: `created_at` in UTC microseconds.
            start: number of the oldest record that the log holds.

        Returns:
            The record it will begin with.
        """
        reached = self._offsets.get(self._name)
        found = (number for number, event in self._log.read(start) if (event["created_at"] or 0) >= since)
        place = min(next(found, reached), reached)
        self._offsets.commit(self._name, place)
        return place

    def _merges(self, events: Iterable[Mapping[str, Any]]) -> list[Merge]:
        rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        created: defaultdict[str, int] = defaultdict(int)
        for event in events:
            if event["action"] in self._actions:
                user = event["user_id"]
                rows[user].append({name: event[name] for name in (*ORDER_FIELDS, *self._view.names)})
                created[user] = max(created[user], event["created_at"] or 0)
        return [Merge(self._view, user, entries, created[user]) for user, entries in rows.items()]
