"""Features on Redis 6.2 or newer: one server, Sentinel or Cluster; for coroutines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio.cluster import RedisCluster

from feature_store.reading import keys_of, missing, readings_of
from feature_store.redis_commands import FAILURES, fetched, reason_of, write_trips
from feature_store.store import now_micros, prepare_merge, prepare_write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from feature_store.reading import Reading, Wanted
    from feature_store.redis_commands import Trip
    from feature_store.redis_reads import RedisReads
    from feature_store.store import Merge, Prepared, Write


class AsyncRedisFeatureStore:
    """`AsyncFeatureStore` on Redis: as `RedisFeatureStore`, but a deadline bounds the whole read, connecting included.

    A read that is given up, by its deadline or because its task is cancelled, closes its connection: a late answer is
    never taken for another read's.

    Args:
        client: without `decode_responses`; closed by `close`.
        reads: of the same server, which then answer in the client's place; closed by `close`.
        clock: now, in UTC microseconds.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        reads: RedisReads | None = None,
        *,
        clock: Callable[[], int] = now_micros,
    ) -> None:
        self._client: Any = client
        self._reads = reads
        self._clock = clock
        self._cluster: Final = isinstance(client, RedisCluster)

    async def put(self, writes: Sequence[Write]) -> list[bool]:
        """See `RedisFeatureStore.put`."""
        now = self._clock()
        return await self._write([prepare_write(write, now) for write in writes])

    async def merge(self, merges: Sequence[Merge]) -> None:
        """See `RedisFeatureStore.merge`."""
        now = self._clock()
        await self._write([prepare_merge(merge, now) for merge in merges])

    async def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `FeatureStore.read`."""
        keys = keys_of(wanted)
        if not keys:
            return []
        try:
            raws: Sequence[Any] = await self._read(keys, deadline)
        except FAILURES as error:
            return [missing(reason_of(error))] * len(wanted)
        return readings_of(wanted, iter(raws), self._clock())

    async def ping(self) -> bool:
        """Open a connection; whether the server answered. Call it before the first request."""
        try:
            return bool(await self._client.ping())
        except FAILURES:
            return False

    async def close(self) -> None:
        """Close the client."""
        if self._reads is not None:
            await self._reads.close()
        await self._client.aclose()

    async def _read(self, keys: list[bytes], deadline: float | None) -> Sequence[Any]:
        if self._reads is not None:
            return await self._reads.get(keys, deadline)
        async with asyncio.timeout(deadline):
            return await self._fetch(keys)

    async def _fetch(self, keys: list[bytes]) -> list[Any]:
        if not self._cluster:
            return list(await self._client.mget(keys))
        pipeline = self._client.pipeline()
        for key in keys:
            pipeline.get(key)
        return fetched(await pipeline.execute(raise_on_error=False))

    async def _write(self, prepared: Sequence[Prepared | None]) -> list[bool]:
        trips = write_trips(prepared, cluster=self._cluster)
        try:
            trip = next(trips)
            while True:
                try:
                    replies = await self._send(trip)
                except FAILURES as error:
                    trip = trips.throw(error)
                else:
                    trip = trips.send(replies)
        except StopIteration as stop:
            return list(stop.value)

    async def _send(self, trip: Trip) -> list[Any]:
        if isinstance(trip[0], bytes):
            return await self._fetch([key for key in trip if isinstance(key, bytes)])
        pipeline = self._client.pipeline() if self._cluster else self._client.pipeline(transaction=False)
        for command in trip:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))
