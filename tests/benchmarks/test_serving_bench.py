"""The parts of `windfire bench serving` that need no server of ours."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.figures import Figure, Report
from benchmarks.serving import Arm, Bench, bench, kept, scenario
from benchmarks.serving_parts.bundles import drawn_histories, item_names, publish_synthetic
from benchmarks.serving_parts.fault_list import FAULTS
from benchmarks.serving_parts.faults import Lasted, recovery, told_of
from benchmarks.serving_parts.knee import seconds_for
from benchmarks.serving_parts.processes import on_cores, present
from benchmarks.serving_parts.proxy import Proxy
from benchmarks.serving_parts.rig import copied
from benchmarks.serving_parts.shifted import JUMP_SECONDS, Shifted
from benchmarks.serving_parts.timed import Stages
from benchmarks.serving_parts.traffic import Driven, SlateJudge
from benchmarks.serving_settings import ServingSettings
from benchmarks.serving_tables import TABLES
from loadtest.running import Load, Run
from loadtest.samples import Recorder
from loadtest.summary import summarize
from loadtest.target import Target
from recsys.bundle import Registry
from recsys.catalog.index import ItemIndex
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUEST = Target("127.0.0.1", 1).request("recommend", "/v1/recommend", b"{}")
SMALL = {"items": 60, "codebook": 8, "text": 4, "d_model": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="session")
def small() -> ServingSettings:
    """The quick form, smaller."""
    settings = ServingSettings.load(quick=True)
    return settings.model_copy(update={"bundle": settings.bundle.model_copy(update=SMALL), "users": 20})


def test_both_forms_of_the_settings_are_valid() -> None:
    full, quick = ServingSettings.load(), ServingSettings.load(quick=True)
    assert full.faults.least == 20_000
    assert full.server_cores != full.client_cores
    assert quick.knee.load_seconds < full.knee.load_seconds


def body(items: list[str], *, version: str = "a", truncated: bool = False) -> bytes:
    shown = [{"item_id": item} for item in items]
    return json.dumps({"items": shown, "bundle_version": version, "truncated": truncated}).encode()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (body(["x", "y"]), None),
        (body(["x"], truncated=True), None),
        (body(["x", "z"], version="b"), None),
        (body([], truncated=True), "empty"),
        (body(["x", "x"]), "twice"),
        (body(["x"]), "length"),
        (body(["x", "y"], truncated=True), "length"),
        (body(["x", "z"]), "mixed"),
        (body(["x", "y"], version="c"), "version"),
        (b"{}", "no_answer"),
        (b"[1]", "no_answer"),
        (b"nonsense", "no_answer"),
    ],
)
def test_the_judge_names_what_is_wrong(answer: bytes, fault: str | None) -> None:
    judge = SlateJudge({"a": ItemIndex.build(["x", "y"]), "b": ItemIndex.build(["x", "z"])}, 2)
    assert judge(REQUEST, 200, answer) == fault


def run_of(tier_at: Callable[[float], str], seconds: int = 20, per_second: int = 10) -> Driven:
    """A run whose every request is answered by the tier of its time; an empty one is a refusal."""
    recorder = Recorder()
    for n in range(seconds * per_second):
        at = n / per_second
        tier = tier_at(at)
        recorder.add(at, 0.01, 0.01, "ok" if tier else "http_503", tier)
    run = Run(Load(rate=per_second, seconds=seconds), recorder.finish(seconds), 0.1, 0, {})
    return Driven(run, summarize(run))


def test_recovery_is_the_first_second_like_those_before() -> None:
    of = run_of(lambda at: "popular_memory" if 5 <= at < 12 else "nezha")
    # of a second that begins .1 s early, nine of ten answers are of the full tier
    assert recovery(of, 5.0, 10.0) == pytest.approx(1.9, abs=0.11)
    assert recovery(of, 5.0, 12.0) == 0.0
    assert recovery(of, 5.0, 5.0) == pytest.approx(6.9, abs=0.11)
    assert recovery(run_of(lambda at: "nezha" if at < 5 else "cached"), 5.0, 10.0) is None


def test_figures_of_a_fault_count_tiers_while_it_lasts() -> None:
    of = run_of(lambda at: "nezha" if at < 5 or at >= 10 else "" if at < 6 else "cached" if at < 8 else "nezha_small")
    arm = told_of(FAULTS["redis_killed"], of, Lasted(5.0, 9.0, 10.0), 10.0)
    values = {figure.name.removeprefix("serving.fault.redis_killed."): figure.value for figure in arm.figures}
    assert values["failed"] == values["error_http_503"] == 10
    assert values["invalid"] == 0
    assert values["tier_share"] == values["tier_cached_share"] == pytest.approx(0.5)
    assert values["tier_nezha_small_share"] == pytest.approx(0.5)
    assert "tier_nezha_share" not in values
    assert (values["recovery_s"], values["restart_s"]) == (0.0, 1.0)
    assert "serving.fault.redis_killed.p999_ms" in arm.refused  # 200 samples


def test_every_fault_has_a_figure_name_of_its_own() -> None:
    assert len(FAULTS) == 10
    assert all(fault.name == name and fault.tiers for name, fault in FAULTS.items())


def test_a_window_holds_as_many_requests_as_are_wanted() -> None:
    rng = np.random.default_rng(1)
    seconds = seconds_for(50.0, 1.0, 20_000)
    assert (rng.poisson(50.0 * seconds, 1_000) >= 20_000).mean() > 0.99
    assert seconds_for(1_000.0, 60.0, 20_000) == 60.0


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1024):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"ping")
        return connection.recv(1024)


def test_the_proxy_passes_delays_and_resets(echo_port: int) -> None:
    with Proxy(echo_port) as proxy:
        assert ask(proxy.port) == b"ping"
        proxy.delay = 0.3
        began = time.monotonic()
        assert ask(proxy.port) == b"ping"
        assert time.monotonic() - began >= 0.3
        proxy.delay, proxy.reset = 0.0, True
        with pytest.raises(ConnectionResetError):
            ask(proxy.port)
        proxy.reset = False
        assert ask(proxy.port) == b"ping"


def test_the_shifted_clock_jumps_both_ways_and_goes_on() -> None:
    clock = Shifted()
    assert abs(clock.time() - time.time()) < 5
    clock.jump(signal.SIGUSR1, None)
    ahead = clock.time_ns()
    assert JUMP_SECONDS - 5 < ahead / 1e9 - time.time() < JUMP_SECONDS + 5
    assert clock.time_ns() >= ahead
    clock.jump(signal.SIGUSR2, None)
    clock.jump(signal.SIGUSR2, None)
    assert JUMP_SECONDS - 5 < time.time() - clock.time() < JUMP_SECONDS + 5


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_stages_are_counted_without_those_inside_them() -> None:
    stages = Stages()
    inner = stages.timed(lambda: burn(0.04), "inner")

    def outside() -> None:
        burn(0.01)
        inner()
        burn(0.01)

    began = time.thread_time()
    stages.timed(outside, "outer")()
    whole = time.thread_time() - began
    times = {name: value / 1e9 for name, value in stages.nanoseconds.items()}
    assert dict(stages.calls) == {"outer": 1, "inner": 1}
    assert times["inner"] >= 0.04
    assert 0.02 <= times["outer"] <= whole - 0.04
    assert sum(times.values()) <= whole


def test_a_process_keeps_to_its_cores_and_gets_the_others_back() -> None:
    import os

    before = os.sched_getaffinity(0)
    with on_cores([0]):
        assert os.sched_getaffinity(0) == {0}
    assert os.sched_getaffinity(0) == before
    assert present([100_000]) == set(range(os.cpu_count() or 1))


def test_versions_share_every_second_item() -> None:
    one, other = item_names(100, own="a"), item_names(100, own="b")
    assert one == sorted(one)
    assert len(set(one) & set(other)) == 50
    assert item_names(3) == ["item-00000000", "item-00000001", "item-00000002"]


@pytest.fixture(scope="session")
def two(small: ServingSettings, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two synthetic bundles."""
    return publish_synthetic(tmp_path_factory.mktemp("two") / "registry", small.bundle, 1, owns=("a", "b"))


def test_a_synthetic_bundle_is_published_once_and_has_histories(two: Registry, small: ServingSettings) -> None:
    first, second = two.versions()
    assert two.current() == first
    two.set_current(second)
    again = publish_synthetic(two.root, small.bundle, 1, owns=("a", "b"))
    assert (again.versions(), again.current()) == ([first, second], first)
    bundle = two.open_current()
    histories = drawn_histories(bundle, 20, 5, 1)
    assert len(histories) == 20
    assert all(1 <= len(items) <= 5 and (bundle.item_ids.lookup(items) >= 0).all() for items in histories.values())


def test_a_copied_registry_leaves_the_source_alone(two: Registry, tmp_path: Path) -> None:
    made = copied(two, tmp_path / "copy", every=True)
    before = two.current()
    made.set_current(made.versions()[1])
    assert made.versions() == two.versions()
    assert two.current() == before
    assert copied(two, tmp_path / "one").versions() == [before]


def test_a_finished_arm_is_not_measured_again(small: ServingSettings, tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> Arm:
        calls.append(1)
        return Arm([Figure("serving.x.failed", 0.0, "requests")], {"knee": 3.0}, {"serving.x.p99_ms": "few"}, ["slow"])

    first, second = (Bench(small, tmp_path, lambda _: None) for _ in range(2))
    arms = [call.arm("knee", "x", measure, rate=1) for call in (first, second)]
    assert arms[0] == arms[1]
    assert len(calls) == 1
    assert (
        (first.refused, first.warnings) == (second.refused, second.warnings) == ({"serving.x.p99_ms": "few"}, ["slow"])
    )
    second.arm("knee", "x", measure, rate=2)
    Bench(small.model_copy(update={"n": 5}), tmp_path, lambda _: None).arm("knee", "x", measure, rate=1)
    assert len(calls) == 3


def test_a_part_that_does_not_exist_is_refused(small: ServingSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such part"):
        bench(small, tmp_path, "x", parts=["speed"], say=lambda _: None)


def test_figures_of_other_scenarios_are_kept() -> None:
    def report(*names: str) -> Report:
        environment: dict[str, Any] = {"git_commit": "a", "cpu": "c"}
        return Report("x", {}, [1], [Figure(name, 1.0, "ms") for name in names], "", environment)

    earlier = report("serving.load50.p99_ms", "serving.load50.error_http_503", "serving.fault.a.failed")
    merged = kept(report("serving.load50.p99_ms", "serving.fault.b.failed"), earlier)
    names = [figure.name for figure in merged.figures]
    assert names == ["serving.load50.p99_ms", "serving.fault.b.failed", "serving.fault.a.failed"]
    assert scenario("serving.fault.a.tier_x_share") == "serving.fault.a"


def test_tables_say_what_is_not_measured_and_show_what_is() -> None:
    assert all(build({}).rows[0][0] == "not measured yet" for build in TABLES.values())
    figures = [
        Figure("serving.knee.rps", 210.0, "requests/s"),
        Figure("serving.load50.offered_rps", 105.0, "requests/s"),
        Figure("serving.load50.p99_ms", 12.3, "ms"),
        Figure("serving.overhead.cpu_ms", 0.41, "ms"),
        Figure("serving.fault.redis_killed.failed", 3.0, "requests", n=20_100),
        Figure("serving.fault.redis_killed.p999_ms", 99.0, "ms"),
    ]
    named = {figure.name: figure for figure in figures}
    assert [row[:2] for row in TABLES[""](named).rows] == [["knee", "210"], ["50 % of the knee", "105"]]
    assert TABLES["overhead"](named).rows == [["**around the decode, all together**", "0.41"]]
    (fault,) = TABLES["faults"](named).rows
    assert fault[:4] == ["Redis killed (kill -9)", "20,100", "3", "-"]
    assert all(len(one) == len(two) for rows in (TABLES[""](named).rows,) for one, two in pairwise(rows))
