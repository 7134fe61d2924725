"""CPU of a request around the decode, stage by stage, and of the same request against a bare echo."""

from __future__ import annotations

import http.client
import signal
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import Figure
from benchmarks.redis_server import free_port
from benchmarks.serving import Arm
from benchmarks.serving_parts.processes import HOST, Spawned, wait_until
from benchmarks.serving_parts.rig import rig
from benchmarks.serving_parts.timed import DECODE, STAGES, TIMES
from recsys.errors import DataError, UnavailableError
from recsys.storage import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from benchmarks.serving import Bench
    from benchmarks.serving_parts.rig import Rig
    from loadtest.target import Request

_MODULE: Final = "benchmarks.serving_parts.timed"
_WAIT: Final = 10.0
_SETTLE: Final = 0.5  # seconds until the exposures of the last requests are written
_NANOSECONDS: Final = 1e6  # of a millisecond
TITLES: Final = {
    "http": "middleware, routing, validation",
    "route": "route: request, counters, answer",
    "history": "history from Redis",
    "ladder": "ladder: deadlines, breakers, limits",
    "queue": "queue of the engine, change of threads",
    "filters": "ids, filters, sources, slate",
    "recheck": "last look at the slate",
    "json": "answer as JSON",
    "exposures": "exposure log",
    "rest": "HTTP server, event loop, kernel",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU milliseconds per request.

    Attributes:
        whole: of the process.
        stages: of each, the decoder among them.
    """

    whole: float
    stages: dict[str, float]

    @property
    def around(self) -> float:
        """Around the decode."""
        return self.whole - self.stages.get(DECODE, 0.0)


def measure(bench: Bench) -> list[Figure]:
    """Server and echo in turn, then the server's stages."""
    return [
        *bench.arm("overhead", "cpu", lambda: Arm(_costs(bench))).figures,
        *bench.arm("overhead", "stages", lambda: Arm(_stages(bench))).figures,
    ]


def _costs(bench: Bench) -> list[Figure]:
    settings = bench.settings.overhead
    with ExitStack() as stack:
        on, times = _timed_rig(bench, stack, stages=False)
        server = on.service.server
        echo_port, echo_times = free_port(), on.folder / "echo.json"
        echo = Spawned(_MODULE, ["echo", "--port", str(echo_port)], cores=bench.settings.server_cores,
                       log=on.folder / "echo.log", variables={TIMES: str(echo_times)})  # fmt: skip
        stack.callback(echo.stop)
        wait_until(lambda: _answers(echo_port), echo)
        if server is None:
            raise UnavailableError("no server runs", field="server")
        ours, theirs = [], []
        for number in range(settings.rounds):
            bench.say(f"  round {number + 1} of {settings.rounds}")
            ours.append(_cost(bench, on, on.service.port, server, times))
            theirs.append(_cost(bench, on, echo_port, echo, echo_times))
    if not all(cost.stages.get(DECODE) for cost in ours):
        raise DataError("the decoder was not called", field=DECODE, value=0, remedy="give a bundle that nezha decodes")
    how = f"{settings.requests} requests one after the other, {settings.rounds} rounds in turn with the echo"
    note = f"user and system time of the whole process less the decoder's; {how}; low and high: the rounds"
    pairs = list(zip(ours, theirs, strict=True))
    return [
        _figure("cpu_ms", [cost.around for cost in ours], settings.requests, note),
        _figure("decode_cpu_ms", [cost.stages[DECODE] for cost in ours], settings.requests, "of the decoder's calls"),
        _figure("echo_cpu_ms", [cost.whole for cost in theirs], settings.requests,
                "of a bare FastAPI application that answers the same body with itself, on the same uvicorn"),
        _figure("over_echo_cpu_ms", [cost.around - echo.whole for cost, echo in pairs], settings.requests,
                "the difference, inside the rounds"),
    ]  # fmt: skip


def _stages(bench: Bench) -> list[Figure]:
    with ExitStack() as stack:
        on, times = _timed_rig(bench, stack, stages=True)
        if on.service.server is None:
            raise UnavailableError("no server runs", field="server")
        cost = _cost(bench, on, on.service.port, on.service.server, times)
    parts = {name: value for name, value in cost.stages.items() if name != DECODE}
    parts["rest"] = cost.around - sum(parts.values())
    note = "with every stage timed, which itself takes some microseconds"
    requests = bench.settings.overhead.requests
    return [
        _figure(f"{name}_cpu_ms", [value], requests, f"{TITLES.get(name, name)}; {note}")
        for name, value in parts.items()
    ]


def _timed_rig(bench: Bench, stack: ExitStack, *, stages: bool) -> tuple[Rig, Path]:
    """One process with the model in it, so that nothing of a request is anywhere else."""
    folder = bench.work / "times"
    folder.mkdir(parents=True, exist_ok=True)
    times = folder / "server.json"
    variables = {TIMES: str(times), STAGES: str(int(stages)), "WINDFIRE_DEADLINE": "PT5S"}
    on = stack.enter_context(
        rig(bench.settings, bench.registry(), data=bench.data, engine=False, module=_MODULE, variables=variables)
    )
    return on, times


def _cost(bench: Bench, on: Rig, port: int, spawned: Spawned, times: Path) -> Cost:
    settings, requests = bench.settings.overhead, on.requests()
    _ask(port, islice(requests, settings.warm_up))
    before = _snapshot(spawned, times)
    _ask(port, islice(requests, settings.requests))
    after = _snapshot(spawned, times)
    each = settings.requests * _NANOSECONDS
    stages = {name: (value - before["nanoseconds"].get(name, 0)) / each for name, value in after["nanoseconds"].items()}
    return Cost((after["process"] - before["process"]) / each, stages)


def _ask(port: int, requests: Iterator[Request]) -> None:
    with closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
        for request in requests:
            connection.request("POST", "/v1/recommend", request.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
            if response.status != http.client.OK:
                raise DataError("the server refuses", field="status", value=(response.status, body[:200]))


def _snapshot(spawned: Spawned, path: Path) -> dict[str, Any]:
    time.sleep(_SETTLE)
    path.unlink(missing_ok=True)
    spawned.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _WAIT
    while not path.is_file():
        if time.monotonic() > deadline:
            raise UnavailableError(f"tells no times:\n{spawned.tail()}", remedy=f"see {spawned.log}")
        time.sleep(0.01)
    value: dict[str, Any] = read_json(path)
    return value


def _answers(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
    except OSError:
        return False


def _figure(name: str, values: Sequence[float], n: int, note: str) -> Figure:
    several = len(values) > 1
    low, high = (min(values), max(values)) if several else (None, None)
    return Figure(f"serving.overhead.{name}", median(values), "ms", low, high, n, note)
