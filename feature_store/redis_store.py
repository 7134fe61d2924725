"""Features on Redis 6.2 or newer: one server, Sentinel or Cluster; for threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError

from feature_store.reading import Reason, keys_of, missing, readings_of
from feature_store.redis_commands import FAILURES, Call, failure, fetched, reason_of, write_flow
from feature_store.store import now_micros, prepare_merge, prepare_write
from recsys.errors import WindfireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from feature_store.reading import Reading, Wanted
    from feature_store.redis_commands import Flow, Step
    from feature_store.store import Merge, Write


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
        clock: now, in UTC microseconds.
    """

    def __init__(self, client: Redis | RedisCluster, *, clock: Callable[[], int] = now_micros) -> None:
        self._client: Any = client
        self._clock = clock
        self._cluster: Final = isinstance(client, RedisCluster)

    def put(self, writes: Sequence[Write]) -> list[bool]:
        """See `FeatureStore.put`.

        Raises:
            DataError: a key holds something of another type.
        """
        now = self._clock()
        return self._drive(write_flow([prepare_write(write, now) for write in writes]))

    def merge(self, merges: Sequence[Merge]) -> None:
        """See `FeatureStore.merge`.

        Raises:
            DataError: a key holds something of another type.
        """
        now = self._clock()
        self._drive(write_flow([prepare_merge(merge, now) for merge in merges]))

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
        # Not client.mget: only a connection takes the time that is left for this one answer.
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(Reason.DEADLINE)
            connection.send_command("MGET", *keys)
            return list(connection.read_response() if left is None else connection.read_response(timeout=left))
        finally:
            pool.release(connection)

    def _drive(self, flow: Flow) -> list[bool]:
        try:
            step = next(flow)
            while True:
                try:
                    replies = self._perform(step)
                except WindfireError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(replies)
        except StopIteration as stop:
            return list(stop.value)

    def _perform(self, step: Step) -> list[Any]:
        calls = [one for one in step if isinstance(one, Call)]
        try:
            if not calls:
                return self._fetch([one for one in step if isinstance(one, bytes)], None)
            if self._cluster:
                replies = self._pipeline([call.by_text() for call in calls])
            else:
                replies = self._pipeline([call.by_sha() for call in calls])
                unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                taught = self._pipeline([calls[place].by_text() for place in unknown])
                for place, reply in zip(unknown, taught, strict=True):
                    replies[place] = reply
        except FAILURES as error:
            raise failure(error, calls[0].keys[-1] if calls else None) from error
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, Exception):
                raise failure(reply, call.keys[-1]) from reply
        return replies

    def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not commands:
            return []
        pipeline = self._client.pipeline() if self._cluster else self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))
