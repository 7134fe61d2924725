"""Features on Redis 6.2 or newer: one server, Sentinel or Cluster; for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from feature_store.reading import Reason, keys_of, missing, readings_of
from feature_store.redis_commands import FAILURES, fetched, reason_of, write_trips
from feature_store.store import now_micros, prepare_merge, prepare_write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from feature_store.reading import Reading, Wanted
    from feature_store.redis_commands import Command, Trip
    from feature_store.store import Merge, Prepared, Write


class OpenedConnections:
    """Counts the connections of a client; redis-py calls it, as `redis_connect_func`, for each new one.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, connection: Any) -> None:
        """Log in and choose the database, as redis-py does where there is no such function."""
        connection.on_connect()
        self.count += 1


class RedisFeatureStore:
    """`FeatureStore` on Redis; see there.

    A write is one script per key, a batch of them one round trip (on a Cluster one per node); a server that does not
    know the scripts yet costs a second one. A read is one MGET, on a Cluster one pipeline per node; MGET takes a key of
    another type for an absent one. Nothing is tried again in secret: the timeouts are the client's
    (`opening.open_store`).

    A deadline bounds the wait for each part of the answer that the network brings; a connection that must be opened
    first may take the client's connect timeout.

    Args:
        client: without `decode_responses`; closed by `close`.
        opened: counts the client's connections, for `epoch`; None: not counted.
        clock: now, in UTC microseconds.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        opened: OpenedConnections | None = None,
        clock: Callable[[], int] = now_micros,
    ) -> None:
        self._client: Any = client
        self._opened = opened
        self._clock = clock
        self._cluster: Final = isinstance(client, RedisCluster)

    def put(self, writes: Sequence[Write]) -> list[bool]:
        """See `FeatureStore.put`.

        Raises:
            DataError: a key holds something of another type.
        """
        now = self._clock()
        return self._write([prepare_write(write, now) for write in writes])

    def merge(self, merges: Sequence[Merge]) -> None:
        """See `FeatureStore.merge`.

        Raises:
            DataError: a key holds something of another type.
        """
        now = self._clock()
        self._write([prepare_merge(merge, now) for merge in merges])

    def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `FeatureStore.read`."""
        keys = keys_of(wanted)
        if not keys:
            return []
        ends = None if deadline is None else time.monotonic() + deadline
        try:
            raws = self._fetch(keys, ends)
        except FAILURES as error:
            return [missing(reason_of(error))] * len(wanted)
        return readings_of(wanted, iter(raws), self._clock())

    @property
    def epoch(self) -> int:
        """See `FeatureStore.epoch`: the connections opened so far."""
        return 0 if self._opened is None else self._opened.count

    def ping(self) -> bool:
        """Open a connection and teach the server nothing; whether it answered. Call it before the first request."""
        try:
            return bool(self._client.ping())
        except FAILURES:
            return False

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _fetch(self, keys: list[bytes], ends: float | None) -> list[Any]:
        if self._cluster:
            pipeline = self._client.pipeline()
            for key in keys:
                pipeline.get(key)
            return fetched(pipeline.execute(raise_on_error=False))
        (reply,) = exchange(self._client, [("MGET", *keys)], ends)
        if isinstance(reply, Exception):
            raise reply
        return list(reply)

    def _write(self, prepared: Sequence[Prepared | None]) -> list[bool]:
        trips = write_trips(prepared, cluster=self._cluster)
        try:
            trip = next(trips)
            while True:
                try:
                    replies = self._send(trip)
                except FAILURES as error:
                    trip = trips.throw(error)
                else:
                    trip = trips.send(replies)
        except StopIteration as stop:
            return list(stop.value)

    def _send(self, trip: Trip) -> list[Any]:
        if isinstance(trip[0], bytes):
            return self._fetch([key for key in trip if isinstance(key, bytes)], None)
        pipeline = self._client.pipeline() if self._cluster else self._client.pipeline(transaction=False)
        for command in trip:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))


def exchange(client: Redis, commands: Sequence[Command], ends: float | None) -> list[Any]:
    """Send commands in one go over one connection; their replies, error answers among them.

    Not a pipeline of redis-py: only a connection takes the time that is left.

    Args:
        client: of a single server or of Sentinel.
        commands: at least one.
        ends: monotonic seconds; None: the client's timeouts alone.

    Raises:
        TimeoutError: `ends` has passed. What redis-py raises of an outage (`FAILURES`) comes through.
    """
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        _left(ends)
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                left = _left(ends)
                replies.append(connection.read_response() if left is None else connection.read_response(timeout=left))
            except ResponseError as error:
                replies.append(error)
    except BaseException:
        connection.disconnect()  # else its late answer would be taken for the next one's; Sentinel's class keeps it
        raise
    finally:
        pool.release(connection)
    return replies


def _left(ends: float | None) -> float | None:
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError(Reason.DEADLINE)
    return left
