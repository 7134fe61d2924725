"""Stores by address: `lmdb:PATH`, `redis://`, `redis+sentinel://` and `redis+cluster://`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from recsys.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis.asyncio.cluster
    import redis.cluster

    from feature_store.redis_async import AsyncRedisFeatureStore
    from feature_store.redis_hashes import AsyncRedisHashReader, HashLayout, RedisHashReader
    from feature_store.store import FeatureStore

LMDB: Final = "lmdb:"
_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379
CLIENT_NAME: Final = "windfire-features"
"""Of every connection to Redis, as `CLIENT LIST` shows it."""
MAX_CONNECTIONS: Final = 1_000
"""Of one client. redis-py refuses the hundred-and-first read at a time unless told otherwise."""
_FORMS: Final = (
    "give lmdb:DIRECTORY, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE "
    "or redis+cluster://HOST:PORT,HOST:PORT; user:password@ may stand before the hosts"
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a Redis client waits.

    Attributes:
        connect: for a connection.
        answer: for each part of an answer; a read with a deadline waits no longer than that.
    """

    connect: timedelta = timedelta(milliseconds=100)
    answer: timedelta = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is.

    Attributes:
        kind: redis, redis+sentinel or redis+cluster.
        hosts: and ports.
        service: of Sentinel.
        database: 0 on a Cluster.
        user: empty for the default one.
        password: empty for none; never shown.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, address: str) -> RedisAddress:
        """Read an address.

        Raises:
            ConfigError: of another form; shows the address without user and password.
        """
        kind, _, rest = address.partition("://")
        login, _, place = rest.rpartition("@")
        hosts, _, path = place.partition("/")
        # Of no known form: wherever somebody may have written a password is left out.
        shown = f"{kind.rpartition('@')[2]}://{place}".partition("?")[0]
        port = _SENTINEL_PORT if kind == "redis+sentinel" else _REDIS_PORT
        try:
            found = tuple(_host(host, port) for host in hosts.split(","))
            service, _, database = path.partition("/") if kind == "redis+sentinel" else ("", "", path)
            number = int(database or 0)
        except ValueError:
            raise _no_store(shown) from None
        fits = {
            "redis": len(found) == 1 and number >= 0,
            "redis+sentinel": bool(service) and number >= 0,
            "redis+cluster": number == 0,
        }
        if not fits.get(kind, False):
            raise _no_store(shown)
        user, _, password = login.partition(":")
        return cls(kind, found, service, number, unquote(user), unquote(password))


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    return parts.hostname, parts.port or port


def _no_store(shown: str) -> ConfigError:
    return ConfigError("no feature store has an address of this form", field="store", value=shown, remedy=_FORMS)


def open_store(address: str, timeouts: Timeouts | None = None) -> FeatureStore:
    """Open a store for threads.

    Raises:
        ConfigError: an address of another form.
        UnavailableError: a Cluster that does not answer; a single server and Sentinel are first asked when used.
    """
    if address.startswith(LMDB):
        from feature_store.embedded import EmbeddedFeatureStore

        return EmbeddedFeatureStore(Path(address.removeprefix(LMDB)))
    from feature_store.redis_store import OpenedConnections, RedisFeatureStore

    opened = OpenedConnections()
    return RedisFeatureStore(_client(address, timeouts, opened), opened=opened)


def open_hashes(address: str, layout: HashLayout, timeouts: Timeouts | None = None) -> RedisHashReader:
    """Open hashes that something else writes, for threads.

    Raises:
        ConfigError: see `open_store`.
        UnavailableError: see `open_store`.
    """
    from feature_store.redis_hashes import RedisHashReader

    return RedisHashReader(_client(address, timeouts), layout)


def open_async_hashes(address: str, layout: HashLayout, timeouts: Timeouts | None = None) -> AsyncRedisHashReader:
    """Open hashes that something else writes, for coroutines.

    Raises:
        ConfigError: see `open_async_store`.
    """
    from feature_store.redis_hashes import AsyncRedisHashReader

    return AsyncRedisHashReader(_async_client(address, timeouts), layout)


def open_async_store(address: str, timeouts: Timeouts | None = None) -> AsyncRedisFeatureStore:
    """Open a Redis store for coroutines; nothing is connected before it is used.

    Raises:
        ConfigError: an address of another form, or one of an embedded store, which needs no waiting.
    """
    from feature_store.redis_async import AsyncRedisFeatureStore
    from feature_store.redis_reads import RedisReads

    where, timeouts = RedisAddress.parse(address), timeouts or Timeouts()
    reads = RedisReads(where, timeouts) if where.kind == "redis" else None
    return AsyncRedisFeatureStore(_async_client(address, timeouts), reads)


def _client(
    address: str, timeouts: Timeouts | None, opened: Callable[[Any], None] | None = None
) -> redis.Redis | redis.cluster.RedisCluster:
    """A client for threads; `opened` is called for each connection, of a Cluster's client never."""
    import redis
    from redis.cluster import ClusterNode, RedisCluster
    from redis.sentinel import Sentinel

    from feature_store.redis_commands import FAILURES

    where = RedisAddress.parse(address)
    options, watchers = _options(where, timeouts or Timeouts())
    own: dict[str, Any] = {"db": where.database, "redis_connect_func": opened, **_no_retry()}
    if where.kind == "redis":
        ((host, port),) = where.hosts
        return redis.Redis(host=host, port=port, **options, **own)
    if where.kind == "redis+sentinel":
        watching = watchers | _no_retry()
        sentinel: Any = Sentinel(list(where.hosts), sentinel_kwargs=watching)  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(where.service, **options, **own)
        return client
    nodes = [ClusterNode(host, port) for host, port in where.hosts]  # type: ignore[no-untyped-call]
    try:
        return RedisCluster(startup_nodes=nodes, **options, retry=_no_retry()["retry"])
    except FAILURES as error:
        raise UnavailableError(f"no node of the cluster answers: {error}", field="store", value=str(where.hosts),
                               remedy="check the addresses, then repeat") from error  # fmt: skip


def _async_client(address: str, timeouts: Timeouts | None) -> redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster:
    """A client for coroutines."""
    import redis.asyncio as redis
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.sentinel import Sentinel

    where = RedisAddress.parse(address)
    options, watchers = _options(where, timeouts or Timeouts())
    own: dict[str, Any] = {"db": where.database, **_no_retry(coroutines=True)}
    if where.kind == "redis":
        ((host, port),) = where.hosts
        return redis.Redis(host=host, port=port, **options, **own)
    if where.kind == "redis+sentinel":
        watching = watchers | _no_retry(coroutines=True)
        sentinel: Any = Sentinel(list(where.hosts), sentinel_kwargs=watching)  # type: ignore[no-untyped-call]
        client: redis.Redis = sentinel.master_for(where.service, **options, **own)
        return client
    nodes = [ClusterNode(host, port) for host, port in where.hosts]
    return RedisCluster(startup_nodes=nodes, **options, retry=own["retry"])


def _options(where: RedisAddress, timeouts: Timeouts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of every client, and of those that only ask Sentinel. RESP2: no notices that change timeouts."""
    waits: dict[str, Any] = {
        "socket_connect_timeout": timeouts.connect.total_seconds(),
        "socket_timeout": timeouts.answer.total_seconds(),
        "protocol": 2,
    }
    login = {"username": where.user or None, "password": where.password or None}
    own = {"client_name": CLIENT_NAME, "max_connections": MAX_CONNECTIONS}
    return waits | login | own, waits


def _no_retry(*, coroutines: bool = False) -> dict[str, Any]:
    """redis-py tries ten times unless told otherwise, a Sentinel that died with the master too."""
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return {"retry": (AsyncRetry if coroutines else Retry)(NoBackoff(), 0), "retry_on_error": []}
