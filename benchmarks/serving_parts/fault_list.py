"""The faults: how each begins and ends, and which tiers may answer meanwhile."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.redis_server import RedisServer, free_port
from benchmarks.serving_parts.processes import Spawned
from benchmarks.serving_parts.proxy import Proxy
from benchmarks.serving_parts.rig import DURABLE, rig
from benchmarks.serving_parts.vllm_stand_in import READY
from recsys.bundle.manifest import MANIFEST
from recsys.errors import UnavailableError
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig

_MODEL: Final = frozenset({"nezha", "nezha_small"})
_NO_HISTORY: Final = frozenset({"cached", "popular_scene", "popular_memory"})
_NO_MODEL: Final = _NO_HISTORY | {"item_to_item"}
_WAIT: Final = 60.0
_CORRUPT: Final = "99991231T000000.000000Z-corrupt"
_STALL: Final = 1.0  # seconds per call


@dataclass
class Ground:
    """What a fault works on.

    Attributes:
        on: the service under load.
        proxy: before Redis, where the fault wants one.
        vllm: the stand-in, where the fault wants one.
        hit: processes that a fault has begun to work on.
    """

    on: Rig
    proxy: Proxy | None = None
    vllm: Spawned | None = None
    hit: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: in figures.
        title: in tables.
        begin: brings it about.
        end: takes it away; returns when what was taken is there again.
        tiers: that may answer while it lasts.
        where: what it wants: `redis`, `proxy`, `vllm`, `shifted`, `workers` (two of them).
        note: beside its figures.
        instant: it is over as soon as it has begun; recovery counts from there.
        effect: a number of the service, above 0 where the fault has taken hold of what no answer shows.
    """

    name: str
    title: str
    begin: Callable[[Ground], Awaitable[None]]
    end: Callable[[Ground], Awaitable[None]]
    tiers: frozenset[str]
    where: str = ""
    note: str = ""
    instant: bool = False
    effect: Callable[[Ground], float] | None = None


@contextmanager
def ground(bench: Bench, fault: Fault) -> Iterator[Ground]:
    """Everything that a fault wants, running."""
    settings, registry = bench.settings, bench.registry()
    if fault.where == "proxy":
        with _redis_behind_proxy(bench) as (redis, proxy), rig(
            settings, registry, data=bench.data, redis=redis, history_address=proxy.address
        ) as on:  # fmt: skip
            yield Ground(on, proxy)
    elif fault.where == "vllm":
        port = free_port()
        folder = bench.work / "stand-in"
        folder.mkdir(parents=True, exist_ok=True)
        stand_in = Spawned(
            "benchmarks.serving_parts.vllm_stand_in", ["--registry", str(registry.root), "--port", str(port)],
            cores=settings.server_cores, log=folder / "log", variables={},
        )  # fmt: skip
        made: Ground | None = None
        try:
            asyncio.run(_said(stand_in, READY))
            variables = {"WINDFIRE_VLLM_URL": f"http://127.0.0.1:{port}"}
            with rig(settings, registry, data=bench.data, variables=variables) as on:
                made = Ground(on, vllm=stand_in)
                yield made
        finally:
            stand_in.stop()
            if made is not None and made.vllm is not None:
                made.vllm.stop()  # the one that was started in its place
    else:
        workers = 2 if fault.where == "workers" else 1
        module = "benchmarks.serving_parts.shifted" if fault.where == "shifted" else "windfire"
        with rig(settings, registry, data=bench.data, workers=workers, module=module) as on:
            yield Ground(on)


@contextmanager
def _redis_behind_proxy(bench: Bench) -> Iterator[tuple[RedisServer, Proxy]]:
    folder = bench.work / "redis"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with RedisServer(folder, DURABLE) as redis, Proxy(redis.port) as proxy:
        yield redis, proxy


async def _said(spawned: Spawned, word: str) -> None:
    async with asyncio.timeout(_WAIT):
        while not spawned.says(word):  # noqa: ASYNC110 - another process says it
            await asyncio.sleep(0.05)


async def _kill_redis(at: Ground) -> None:
    await asyncio.to_thread(at.on.redis.kill)  # it waits for the end, and the load goes on


async def _start_redis(at: Ground) -> None:
    await asyncio.to_thread(at.on.redis.start)


def _before_redis(at: Ground) -> Proxy:
    if at.proxy is None:
        raise UnavailableError("no proxy stands before Redis", field="where")
    return at.proxy


async def _stall(at: Ground) -> None:
    _before_redis(at).delay = _STALL


async def _no_stall(at: Ground) -> None:
    _before_redis(at).delay = 0.0


async def _reset(at: Ground) -> None:
    _before_redis(at).reset = True


async def _no_reset(at: Ground) -> None:
    _before_redis(at).reset = False


def _engine(at: Ground) -> Spawned:
    engine = at.on.service.engine
    if engine is None:
        raise UnavailableError("there is no engine process", field="engine")
    return engine


async def _kill_engine(at: Ground) -> None:
    _engine(at).kill()


async def _start_engine(at: Ground) -> None:
    await asyncio.to_thread(at.on.service.start_engine)


async def _freeze_engine(at: Ground) -> None:
    _engine(at).process.send_signal(signal.SIGSTOP)


async def _thaw_engine(at: Ground) -> None:
    _engine(at).process.send_signal(signal.SIGCONT)


async def _kill_vllm(at: Ground) -> None:
    if at.vllm is None:
        raise UnavailableError("there is no stand-in for vLLM", field="where")
    at.vllm.kill()


async def _start_vllm(at: Ground) -> None:
    if at.vllm is not None:
        at.vllm = await asyncio.to_thread(at.vllm.again)
        await _said(at.vllm, READY)


async def _fill_disk(at: Ground) -> None:
    """No file of the server can grow: what a full disk is to it, without filling anybody else's."""
    for process in at.on.service.server.family() if at.on.service.server else ():
        at.hit.append(process.pid)
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))


async def _empty_disk(at: Ground) -> None:
    for pid in at.hit:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


async def _kill_worker(at: Ground) -> None:
    pid = at.on.service.worker_pids()[0]
    at.hit.append(pid)
    os.kill(pid, signal.SIGKILL)


async def _worker_is_back(at: Ground) -> None:
    async with asyncio.timeout(_WAIT):
        while len(set(at.on.service.worker_pids()) - set(at.hit)) < 2:  # noqa: ASYNC110 - a log line is awaited
            await asyncio.sleep(0.1)


async def _publish_corrupt(at: Ground) -> None:
    registry = at.on.registry
    current = registry.current() or ""
    copy = registry.path(_CORRUPT)
    await asyncio.to_thread(shutil.copytree, registry.path(current), copy)
    manifest = read_json(copy / MANIFEST)
    write_json_atomically(copy / MANIFEST, {**manifest, "version": _CORRUPT})
    with (copy / "model" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 0xFF]))
    registry.set_current(_CORRUPT)


async def _unpublish(at: Ground) -> None:
    registry = at.on.registry
    registry.set_current(registry.versions()[0])


async def _jump(at: Ground) -> None:
    _signal_all(at, signal.SIGUSR1)


async def _jump_back(at: Ground) -> None:
    _signal_all(at, signal.SIGUSR2)


def _dropped_exposures(at: Ground) -> float:
    return at.on.service.metric("windfire_exposures_dropped_total")


def _refused_bundles(at: Ground) -> float:
    return float(at.on.service.tells("/readyz").count(b"bundle_refused"))


def _signal_all(at: Ground, number: int) -> None:
    for spawned in at.on.service.processes():
        os.kill(spawned.pid, number)


FAULTS: Final[dict[str, Fault]] = {
    fault.name: fault
    for fault in (
        Fault("redis_killed", "Redis killed (kill -9)", _kill_redis, _start_redis, _NO_HISTORY),
        Fault("redis_stalled", "Redis answers after 1 s", _stall, _no_stall, _NO_HISTORY, "proxy"),
        Fault("redis_reset", "Redis resets connections", _reset, _no_reset, _NO_HISTORY, "proxy"),
        Fault("engine_killed", "engine killed (kill -9)", _kill_engine, _start_engine, _NO_MODEL,
              note="the fault ends when a new engine listens"),
        Fault("engine_stalled", "engine stopped (SIGSTOP)", _freeze_engine, _thaw_engine, _NO_MODEL),
        Fault("vllm_gone", "vLLM gone", _kill_vllm, _start_vllm, _NO_MODEL, "vllm",
              note="a stand-in that speaks the plug-in's interface takes the place of vLLM"),
        Fault("disk_full", "no log can be written", _fill_disk, _empty_disk, _MODEL,
              note="the server's limit on file sizes is set to 0, so that every write that would grow a file fails",
              effect=_dropped_exposures),
        Fault("front_end_killed", "one of two front-ends killed", _kill_worker, _worker_is_back, _MODEL, "workers",
              note="what was in flight in it fails; recovery counts from the kill", instant=True),
        Fault("corrupt_bundle", "a damaged bundle is published", _publish_corrupt, _unpublish, _MODEL,
              effect=_refused_bundles),
        Fault("clock_jump", "the wall clock jumps an hour ahead, and back", _jump, _jump_back, _MODEL, "shifted"),
    )
}  # fmt: skip
