"""Features that something else keeps in Redis hashes, read as views: plain fields or Feast's layout; never written."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster

from feature_store.encoding import TIMES, pack_fields
from feature_store.feast_format import decode_time, decode_value, entity_key, field_name, time_field
from feature_store.fields import Kind
from feature_store.reading import Reading, Reason, Status, missing
from feature_store.redis_commands import FAILURES, fetched, reason_of
from feature_store.redis_store import exchange
from feature_store.store import now_micros
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from feature_store.reading import Wanted
    from feature_store.redis_commands import Command
    from feature_store.views import View

_DIGITS: Final = re.compile("-?[0-9]{1,19}")
_TRUTHS: Final = {b"1": True, b"true": True, b"0": False, b"false": False}


class HashLayout(Protocol):
    """Where a view stands in hashes, and how its bytes are read."""

    def key(self, view: View, entity: str) -> bytes:
        """Of the hash of an entity.

        Raises:
            InputError: an entity that cannot be a key.
        """
        ...

    def time(self, view: View) -> bytes | None:
        """Field of the event time; None: there is none."""
        ...

    def fields(self, view: View) -> tuple[bytes, ...]:
        """One per field of the view, in its order."""
        ...

    def read_time(self, raw: bytes) -> int:
        """UTC microseconds.

        Raises:
            ValueError: it cannot be read.
        """
        ...

    def read_value(self, kind: Kind, raw: bytes) -> Any:
        """A value for a field of this kind.

        Raises:
            ValueError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class PlainHashes:
    """Fields by name, as redis-cli shows them: numbers and texts as they are, lists and vectors as JSON.

    Attributes:
        key_format: with `{entity}` in it, and `{view}` where each view has a hash of its own.
        time_field: of the event time; None: values have no age, and a view with a ttl is refused.
        time_scale: microseconds per unit of the event time; 1,000,000 for seconds.

    Raises:
        ConfigError: a key without the entity.
    """

    key_format: str = "{entity}"
    time_field: str | None = None
    time_scale: int = 1_000_000

    def __post_init__(self) -> None:
        if "{entity}" not in self.key_format:
            raise ConfigError("a key names the entity", field="key_format", value=self.key_format,
                              remedy="write {entity} where the id stands")  # fmt: skip

    def key(self, view: View, entity: str) -> bytes:
        """See `HashLayout.key`."""
        return self.key_format.replace("{view}", view.name).replace("{entity}", entity).encode()

    def time(self, view: View) -> bytes | None:
        """See `HashLayout.time`.

        Raises:
            ConfigError: the view has a ttl and the hashes have no time.
        """
        if self.time_field is None and view.ttl is not None:
            raise ConfigError("a view with a ttl needs event times", field="time_field", value=None,
                              remedy=f"name the field of the time, or declare {view.label} without a ttl")  # fmt: skip
        return None if self.time_field is None else self.time_field.encode()

    def fields(self, view: View) -> tuple[bytes, ...]:
        """See `HashLayout.fields`."""
        return tuple(name.encode() for name in view.names)

    def read_time(self, raw: bytes) -> int:
        """See `HashLayout.read_time`."""
        try:
            return int(raw) * self.time_scale
        except ValueError:
            return round(float(raw) * self.time_scale)

    def read_value(self, kind: Kind, raw: bytes) -> Any:
        """See `HashLayout.read_value`."""
        if kind is Kind.STRING:
            return raw.decode()
        if kind is Kind.INT64:
            return int(raw)
        if kind is Kind.FLOAT64:
            return float(raw)
        if kind is Kind.BOOL:
            if raw.lower() not in _TRUTHS:
                raise ValueError("neither 0, 1, true nor false")
            return _TRUTHS[raw.lower()]
        return json.loads(raw)


@dataclass(frozen=True)
class FeastHashes:
    """Feast's online store on Redis; see `feast_format`. A view's name is that of the feature view.

    Attributes:
        project: of Feast.
        join_key: name of the one key of the entities.
        integer_ids: whether Feast keeps ids as INT64.
    """

    project: str
    join_key: str
    integer_ids: bool = False

    def key(self, view: View, entity: str) -> bytes:
        """See `HashLayout.key`."""
        if not self.integer_ids:
            return entity_key(self.project, self.join_key, entity)
        if not _DIGITS.fullmatch(entity) or int(entity) not in range(-(2**63), 2**63):
            raise InputError(f"the {view.entity} of the view {view.name} is an integer in Feast", field="entity",
                             value=entity, remedy="give its digits")  # fmt: skip
        return entity_key(self.project, self.join_key, int(entity))

    def time(self, view: View) -> bytes | None:
        """See `HashLayout.time`."""
        return time_field(view.name)

    def fields(self, view: View) -> tuple[bytes, ...]:
        """See `HashLayout.fields`."""
        return _feast_fields(view.name, view.names)

    def read_time(self, raw: bytes) -> int:
        """See `HashLayout.read_time`."""
        return decode_time(raw)

    def read_value(self, kind: Kind, raw: bytes) -> Any:  # noqa: ARG002 - the bytes say their kind
        """See `HashLayout.read_value`."""
        return decode_value(raw)


@lru_cache(maxsize=1024)
def _feast_fields(view: str, names: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(field_name(view, name) for name in names)


class RedisHashReader:
    """`FeatureStore.read` over hashes, for threads: one pipeline, PRESENT, STALE or MISSING by the view's own ttl.

    Args:
        client: without `decode_responses`; closed by `close`.
        layout: of the hashes.
        clock: now, in UTC microseconds.
    """

    def __init__(
        self, client: Redis | RedisCluster, layout: HashLayout, *, clock: Callable[[], int] = now_micros
    ) -> None:
        self._client: Any = client
        self._cluster: Final = isinstance(client, RedisCluster)
        self._layout = layout
        self._clock = clock

    def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `FeatureStore.read`.

        Raises:
            InputError: an entity that cannot be a key, or a history.
            ConfigError: a view with a ttl over hashes without times.
        """
        ends = None if deadline is None else time.monotonic() + deadline
        commands = _commands(self._layout, wanted)
        if not commands:
            return []
        try:
            if self._cluster:
                pipeline = self._client.pipeline()
                for command in commands:
                    pipeline.execute_command(*command)
                replies = list(pipeline.execute(raise_on_error=False))
            else:
                replies = exchange(self._client, commands, ends)
            return _readings(self._layout, wanted, fetched(replies), self._clock())
        except FAILURES as error:
            return [missing(reason_of(error))] * len(wanted)

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class AsyncRedisHashReader:
    """`RedisHashReader` for coroutines; a deadline bounds the whole read."""

    def __init__(
        self, client: AsyncRedis | AsyncRedisCluster, layout: HashLayout, *, clock: Callable[[], int] = now_micros
    ) -> None:
        self._client: Any = client
        self._cluster: Final = isinstance(client, AsyncRedisCluster)
        self._layout = layout
        self._clock = clock

    async def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `RedisHashReader.read`."""
        commands = _commands(self._layout, wanted)
        if not commands:
            return []
        try:
            async with asyncio.timeout(deadline):
                pipeline = self._client.pipeline() if self._cluster else self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies = list(await pipeline.execute(raise_on_error=False))
            return _readings(self._layout, wanted, fetched(replies), self._clock())
        except FAILURES as error:
            return [missing(reason_of(error))] * len(wanted)

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()


def _commands(layout: HashLayout, wanted: Sequence[Wanted]) -> list[Command]:
    commands: list[Command] = []
    for view, entity in wanted:
        if view.history is not None:
            raise InputError("hashes hold values, not histories", field="view", value=view.label,
                             remedy="read views of one value from them")  # fmt: skip
        view.key(entity)  # the same ids are refused as by every store
        time_name = layout.time(view)
        names = layout.fields(view) if time_name is None else (*layout.fields(view), time_name)
        commands.append(("HMGET", layout.key(view, entity), *names))
    return commands


def _readings(layout: HashLayout, wanted: Sequence[Wanted], replies: Sequence[Any], now: int) -> list[Reading]:
    return [_reading(layout, view, reply, now) for (view, _), reply in zip(wanted, replies, strict=True)]


def _reading(layout: HashLayout, view: View, reply: Sequence[bytes | None] | None, now: int) -> Reading:
    if reply is None or all(raw is None for raw in reply):
        return missing(Reason.ABSENT)
    try:
        event_time = None
        if len(reply) > len(view.fields):
            last = reply[-1]
            if last is None:  # another view's fields in the same hash
                return missing(Reason.ABSENT)
            event_time = layout.read_time(last)
            if event_time not in TIMES:
                return missing(Reason.CORRUPT)
        given = {
            field.name: layout.read_value(field.kind, raw)
            for field, raw in zip(view.fields, reply, strict=False)
            if raw is not None
        }
        values = view.codec.named(tuple(pack_fields(view, given)))
    except (ValueError, OverflowError, RecursionError, InputError):
        return missing(Reason.CORRUPT)
    if event_time is not None and view.gone(event_time, now):
        return missing(Reason.ABSENT)
    if event_time is not None and view.stale(event_time, now):
        return Reading(Status.STALE, Reason.TTL, event_time, None, values)
    return Reading(Status.PRESENT, Reason.NONE, event_time, None, values)
