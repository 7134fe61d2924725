"""Memory of several front-ends over a large catalogue, with one engine process and with a model each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.figures import Figure
from benchmarks.serving import Arm
from benchmarks.serving_parts.processes import pss_mib
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.traffic import driven, load_of
from loadtest.running import run_in_loop

if TYPE_CHECKING:
    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig

_ARMS: Final = {"socket": True, "in_process": False}
_RATE: Final = 50.0  # requests/s; every front-end has answered before the memory is read


def measure(bench: Bench) -> list[Figure]:
    """Both arrangements."""
    figures: list[Figure] = []
    for name, engine in _ARMS.items():
        figures += bench.arm("memory", name, lambda n=name, e=engine: _one(bench, n, engine=e)).figures  # type: ignore[misc]
    return figures


def _one(bench: Bench, name: str, *, engine: bool) -> Arm:
    settings = bench.settings.memory
    source = bench.synthetic(bench.sized(settings.items))
    with rig(bench.settings, source, workers=settings.workers, engine=engine) as on:
        load = load_of(bench.settings, _RATE, settings.requests / _RATE, 0.0)
        of = run_in_loop(driven(on.target, load, on.requests(), on.judge()))
        workers, every = [pss_mib(pid) for pid in on.service.worker_pids()], all_mib(on)
        model = 0.0 if on.service.engine is None else pss_mib(on.service.engine.pid)
    stem, note = f"serving.memory.{name}", f"PSS; {settings.items:,} items, {of.summary.offered} requests before"
    values = {
        "front_ends": sum(workers),
        "largest": max(workers),
        "all": every,
        **({"engine": model} if engine else {}),
    }
    return Arm(
        [Figure(f"{stem}.{part}_mib", value, "MiB", n=len(workers), note=note) for part, value in values.items()]
    )


def all_mib(on: Rig) -> float:
    """Of all processes of a service, what several share counted once."""
    return sum(pss_mib(process.pid) for spawned in on.service.processes() for process in spawned.family())
