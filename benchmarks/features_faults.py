"""A Redis master dies under load: how long until a write is acknowledged, and what of the acknowledged is left."""

from __future__ import annotations

import re
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import redis

from benchmarks.figures import Figure
from benchmarks.redis_server import RedisServer, free_port
from feature_store.opening import Timeouts, open_store
from feature_store.standard import USER_RECENT
from feature_store.store import now_micros
from feature_store.streaming import HistoryStream
from recsys.errors import UnavailableError
from recsys.event_log import ConsumerOffsets, EventLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from feature_store.store import FeatureStore

_SENTINELS: Final = 3
_USERS: Final = 20
_DOWN_AFTER_MS: Final = 500
_TIMEOUTS: Final = Timeouts(timedelta(milliseconds=100), timedelta(milliseconds=200))
_PAUSE: Final = 0.01  # seconds between tries while no write is acknowledged
_CUT_OFF: Final = 0.2  # seconds for which the master writes what its replica does not get
_LOAD: Final = 0.5  # seconds of writing before that
_PATIENCE: Final = 60.0
_STEPS: Final = ("+sdown", "+odown", "+elected-leader", "+promoted-slave", "+switch-master")
_LINE: Final = re.compile(r"^\d+:X (\d+ \w+ \d+ \d+:\d+:\d+\.\d+) \S (\+[\w-]+) ?(\w*)")


@dataclass(frozen=True, slots=True)
class Failover:
    """One master that was killed.

    Attributes:
        seconds: from the kill to the first write that was acknowledged again.
        acknowledged: events merged before the kill.
        lost: of these, absent from the replica that took over.
        missing: events of the log absent from the store at the end.
        steps: seconds from the kill to what the sentinels logged, the earliest of each.
    """

    seconds: float
    acknowledged: int
    lost: int
    missing: int
    steps: dict[str, float]


class Watched:
    """A master, its replica and three sentinels.

    Args:
        directory: existing and empty; holds logs and configurations.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self.master = RedisServer(directory)
        self.replica = RedisServer(
            directory, ["--replicaof", "127.0.0.1", str(self.master.port), "--repl-diskless-sync-delay", "0"]
        )
        self.ports = [free_port() for _ in range(_SENTINELS)]
        self.sentinels = [RedisServer(directory, port=port, sentinel=self._configuration(port)) for port in self.ports]

    @property
    def address(self) -> str:
        """For `open_store`."""
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + "/features"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (self.master, self.replica):
                stack.enter_context(server)
            with redis.Redis(port=self.replica.port) as client:
                _wait(lambda: client.info("replication")["master_link_status"] == "up")
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            for port in self.ports:
                with redis.Redis(port=port) as client:
                    _wait(lambda client=client: _knows_all(client))  # type: ignore[misc]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut_off(self) -> None:
        """Let the replica get nothing more; it must go on after the master is dead."""
        self.replica.pause()
        with redis.Redis(port=self.master.port) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def steps(self, killed: float) -> dict[str, float]:
        """Seconds from `killed`, seconds since 1970, to the earliest line of each kind in the sentinels' logs."""
        found: dict[str, float] = {}
        for port in self.ports:
            for step, moment in _steps((self._directory / f"{port}.log").read_text()):
                if moment >= killed:
                    found[step] = min(found.get(step, moment - killed), moment - killed)
        return {step: found[step] for step in _STEPS if step in found}

    def _configuration(self, port: int) -> str:
        return (
            f"port {port}\nsentinel monitor features 127.0.0.1 {self.master.port} 2\n"
            f"sentinel down-after-milliseconds features {_DOWN_AFTER_MS}\nsentinel failover-timeout features 2000\n"
        )


def fail_over(directory: Path, *, with_sentinel: bool = False) -> Failover:
    """Write events under load, cut the replica off, kill the master, and write on.

    Args:
        directory: existing and empty.
        with_sentinel: kill the sentinel with it that the client asks first, as if they shared a machine.

    Raises:
        UnavailableError: no redis-server, or nothing was acknowledged within a minute.
    """
    with Watched(directory) as watched, closing(EventLog(directory / "events")) as log:
        store = open_store(watched.address, _TIMEOUTS)
        with closing(store):
            offsets = ConsumerOffsets(directory / "offsets")
            load = _Load(log, HistoryStream(log, store, offsets, USER_RECENT, settle=timedelta(seconds=30)))
            load.write_for(_LOAD)
            watched.cut_off()
            load.write_for(_CUT_OFF)
            acknowledged = load.written
            watched.master.kill()
            for sentinel in watched.sentinels[: int(with_sentinel)]:
                sentinel.kill()
            wall, killed = time.time(), time.monotonic()
            watched.replica.go_on()
            with closing(open_store(watched.replica.address, _TIMEOUTS)) as left:
                lost = acknowledged - len(_held(left))
            seconds = load.write_on(killed)
            load.write_for(_CUT_OFF)
            logged = {event["event_id"] for _, event in log.read()}
            return Failover(seconds, acknowledged, lost, len(logged - _held(store)), watched.steps(wall))


class _Load:
    """Events into the log, then into the store, one after the other."""

    def __init__(self, log: EventLog, stream: HistoryStream) -> None:
        self._log = log
        self._stream = stream
        self.written = 0

    def write(self) -> None:
        """One event; it is in the log, whatever the store says.

        Raises:
            UnavailableError: the store did not acknowledge.
        """
        number = self.written
        self.written += 1
        self._log.take([{"event_id": f"e{number}", "user_id": f"u{number % _USERS}", "item_id": f"i{number}",
                         "action": "click", "time": now_micros()}])  # fmt: skip
        self._stream.catch_up()

    def write_for(self, seconds: float) -> None:
        """Write as fast as it goes."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.write()

    def write_on(self, since: float) -> float:
        """Try until a write is acknowledged; seconds from `since`."""
        while True:
            try:
                self.write()
            except UnavailableError:
                if time.monotonic() > since + _PATIENCE:
                    raise
                time.sleep(_PAUSE)
            else:
                return time.monotonic() - since


def _held(store: FeatureStore) -> set[str]:
    readings = store.read([(USER_RECENT, f"u{user}") for user in range(_USERS)])
    return {entry[2] for reading in readings for entry in reading.entries or []}


def _steps(log: str) -> Iterator[tuple[str, float]]:
    for line in log.splitlines():
        if (match := _LINE.match(line)) and match[2] in _STEPS and match[3] in ("master", "slave", "features"):
            yield match[2], datetime.strptime(match[1], "%d %b %Y %H:%M:%S.%f").astimezone().timestamp()


def _knows_all(sentinel: Any) -> bool:
    found = sentinel.sentinel_master("features")
    return (found["num-slaves"], found["num-other-sentinels"]) == (1, _SENTINELS - 1)


def _wait(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > ends:
            raise UnavailableError("the servers do not come together", remedy="see whether the machine is overloaded")
        time.sleep(0.02)


def measure(kills: int, say: Callable[[str], object]) -> list[Figure]:
    """Kill `kills` masters, each of servers of its own.

    Raises:
        UnavailableError: see `fail_over`.
    """
    runs = []
    for number in range(kills):
        say(f"killing a master under load: {number + 1} of {kills}")
        with tempfile.TemporaryDirectory() as name:
            runs.append(fail_over(Path(name)))
    return figures(runs)


def figures(runs: Sequence[Failover]) -> list[Figure]:
    """Medians over the kills, low and high are the extremes; none without a kill."""
    if not runs:
        return []
    stem, note = "features.failover", f"{_SENTINELS} sentinels, down after {_DOWN_AFTER_MS} ms"
    acknowledged = sum(run.acknowledged for run in runs)
    found = [
        _middle(f"{stem}.seconds", [run.seconds for run in runs], f"from the kill to an acknowledged write; {note}"),
        Figure(f"{stem}.lost", sum(run.lost for run in runs), "events", n=acknowledged,
               note="acknowledged, and not on the replica"),
        Figure(f"{stem}.missing", sum(run.missing for run in runs), "events",
               note="in the log and not in the store, after the log was sent again"),
    ]  # fmt: skip
    for step in _STEPS:
        if times := [run.steps[step] for run in runs if step in run.steps]:
            name = step.removeprefix("+").replace("-", "_")
            found.append(_middle(f"{stem}.{name}", times, "from the kill to the sentinels' line"))
    return found


def _middle(name: str, seconds: list[float], note: str) -> Figure:
    return Figure(name, float(np.median(seconds)), "s", min(seconds), max(seconds), len(seconds), note)
