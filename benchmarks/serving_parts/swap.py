"""Bundles that change under load, and workers that are replaced one after the other; the client never tries again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.traffic import driven_while, figures_of, load_of
from loadtest.running import run_in_loop

if TYPE_CHECKING:
    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig
    from benchmarks.serving_parts.traffic import Driven, SlateJudge

OWNS: Final = ("a", "b", "c")  # half of the items of each bundle are of no other one
_SEEN: Final = 120.0  # seconds until an answer must name a version
_REPLACED: Final = 120.0
_WARMUP: Final = 2.0
_EACH_RESTART: Final = 15.0  # seconds of the window for each worker


def measure(bench: Bench) -> list[Figure]:
    """Swaps and rollbacks, then SIGTERM to each worker."""
    return [
        *bench.arm("swap", "swaps", lambda: _swaps(bench)).figures,
        *bench.arm("swap", "restarts", lambda: _restarts(bench)).figures,
    ]


def _swaps(bench: Bench) -> Arm:
    settings = bench.settings.swap
    source = bench.synthetic(bench.sized(settings.items), owns=OWNS)
    moves = settings.swaps + settings.rollbacks
    load = load_of(bench.settings, settings.rate, (moves + 1) * settings.pause, _WARMUP)
    with rig(bench.settings, source, workers=settings.workers, engine=settings.engine, every=True) as on:
        judge = on.judge()

        async def change(opens: float) -> int:
            done = 0
            for move in range(moves):
                await asyncio.sleep(max(0.0, opens + (move + 0.5) * settings.pause - time.monotonic()))
                version = _moved(on, move, settings.swaps)
                done += await _named(judge, version)
            return done

        of, done = run_in_loop(driven_while(on.target, load, on.requests(), judge, change))
        versions = len(judge.versions)
    arm = _told("serving.swap", of)
    note = (
        f"{settings.swaps} swaps and {settings.rollbacks} rollbacks; a change counts once an answer names its version"
    )
    arm.figures.append(Figure("serving.swap.swaps", done, "changes", n=moves, note=note))
    arm.figures.append(Figure("serving.swap.versions", versions, "versions", note="that answers named"))
    return arm


def _moved(on: Rig, move: int, swaps: int) -> str:
    """Serve another version: the next one, behind the swaps the one before."""
    versions = on.registry.versions()
    place = versions.index(on.registry.current() or versions[0])
    version = versions[(place + 1 if move < swaps else place - 1) % len(versions)]
    on.registry.set_current(version)
    return version


async def _named(judge: SlateJudge, version: str) -> bool:
    """Wait until an answer that comes from now on names a version; False where none does."""
    before, ends = judge.versions[version], time.monotonic() + _SEEN
    while judge.versions[version] == before:
        if time.monotonic() > ends:
            return False
        await asyncio.sleep(0.02)
    return True


def _restarts(bench: Bench) -> Arm:
    settings = bench.settings.swap
    source = bench.synthetic(bench.sized(settings.items), owns=OWNS)
    load = load_of(bench.settings, settings.rate, settings.workers * _EACH_RESTART, _WARMUP)
    with rig(bench.settings, source, workers=settings.workers, engine=settings.engine, every=True) as on:

        async def restart(opens: float) -> int:
            await asyncio.sleep(max(0.0, opens - time.monotonic()))
            return sum([await replaced(on, pid, settings.workers) for pid in on.service.worker_pids()])

        of, done = run_in_loop(driven_while(on.target, load, on.requests(), on.judge(), restart))
    arm = _told("serving.restart", of)
    note = "SIGTERM to one worker after the other, each once the one before it was replaced"
    arm.figures.append(Figure("serving.restart.restarts", done, "workers", n=settings.workers, note=note))
    return arm


async def replaced(on: Rig, pid: int, workers: int) -> bool:
    """SIGTERM to a worker; whether it went and its successor came."""
    os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + _REPLACED
    while time.monotonic() < ends:
        now = on.service.worker_pids()
        if pid not in now and len(now) == workers:
            return True
        await asyncio.sleep(0.1)
    return False


def _told(stem: str, of: Driven) -> Arm:
    arm, offered = figures_of(stem, of), of.summary.offered
    note = "answers with an item that the catalogue of the version they name does not have"
    mixed = of.summary.errors.get("invalid_mixed", 0)
    return Arm(
        [
            *arm.figures,
            Figure(f"{stem}.requests", offered, "requests"),
            Figure(f"{stem}.mixed", mixed, "answers", n=offered, note=note),
        ],
        refused={name: why for name, why in arm.refused.items() if "p999" not in name},
        warnings=arm.warnings,
    )
