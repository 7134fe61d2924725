"""Where a request's time goes: metrics, log lines and traces of stages."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    Tracer,
    TracerProvider,
    get_current_span,
)
from starlette.testclient import TestClient

from recsys.errors import ConfigError, UnavailableError
from serving.app import create_app
from serving.engine import EngineAnswer, EngineCounts
from serving.metrics import Metrics
from serving.schemas import ServedBy
from serving.settings import Settings
from serving.timing import STAGES, StageTimes, follow, timed, timed_engine, traceparent
from serving.tracing import Tracing, start_tracing
from serving.watching import RequestWatch

Lines = list[MutableMapping[str, Any]]


def answer(times: tuple[float, float, float] | None) -> EngineAnswer:
    return EngineAnswer([], ServedBy.NEZHA, None, "b", "b.0", False, EngineCounts(0, 0, 0, 0), times=times)


@timed("features")
async def read() -> str:
    await asyncio.sleep(0.002)
    return "read"


@timed_engine
async def ask(times: tuple[float, float, float] | None) -> EngineAnswer:
    await asyncio.sleep(0.01)
    return answer(times)


@timed_engine
async def refuse() -> EngineAnswer:
    raise UnavailableError("full")


def test_the_framework_counts_and_traces_nothing_a_second_time(server_settings: Settings) -> None:
    app: Any = create_app(server_settings)
    assert [app._telemetry[kind] for kind in ("tracing", "metrics", "logs")] == [False, False, False]


def test_the_stages_of_a_request_follow_each_other_and_fill_its_time() -> None:
    async def serve() -> StageTimes:
        times = StageTimes(time.perf_counter())
        follow(times)
        assert await read() == "read"
        await ask((0.001, 0.002, 0.003))
        return times

    times = asyncio.run(serve())
    assert [stage.name for stage in times.stages] == list(STAGES[:-1])
    for earlier, later in zip(times.stages, times.stages[1:], strict=False):
        assert later.began >= earlier.began + earlier.seconds - 1e-6
    assert sum(stage.seconds for stage in times.stages[3:]) == pytest.approx(0.006)
    assert sum(stage.seconds for stage in times.stages[2:]) >= 0.01
    assert set(times.milliseconds()) == set(STAGES[:-1])


def test_an_engine_that_fails_has_only_been_waited_for() -> None:
    async def serve() -> StageTimes:
        times = StageTimes(time.perf_counter())
        follow(times)
        with pytest.raises(UnavailableError):
            await refuse()
        await ask(None)
        return times

    assert [stage.name for stage in asyncio.run(serve()).stages] == ["validation", "wait", "wait"]


def test_outside_a_request_nothing_is_noted() -> None:
    assert asyncio.run(read()) == "read"
    assert asyncio.run(ask(None)).times is None
    assert traceparent() is None


def test_every_stage_of_a_recommendation_is_measured(client: TestClient) -> None:
    for _ in range(2):
        assert client.post("/v1/recommend", json={"user_id": "ann", "history": ["item-11"]}).status_code == 200
    assert client.post("/v1/recommend", json={"user_id": "ann"}).status_code == 200
    client.post("/v1/recommend", json={"n": 0})
    text = client.get("/metrics").text
    counts = {stage: f'windfire_stage_seconds_count{{stage="{stage}"}} 3.0' in text for stage in STAGES}
    assert counts == dict.fromkeys(STAGES, True)


def test_slow_requests_are_logged_with_their_stages(server_settings: Settings, log_lines: Lines) -> None:
    settings = server_settings.model_copy(update={"slow_request": timedelta(microseconds=1)})
    with TestClient(create_app(settings)) as client:
        response = client.post("/v1/recommend", json={"history": ["item-11"]})
    (line,) = [line for line in log_lines if line["event"] == "request_slow"]
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert (line["route"], line["tier"], line["status"]) == ("/v1/recommend", "nezha", 200)
    assert list(line["stages"]) == [*STAGES]
    assert sum(line["stages"].values()) <= line["milliseconds"]


def test_lines_about_slow_requests_are_few(log_lines: Lines) -> None:
    now = [0.0]
    watch = RequestWatch(Metrics(), timedelta(seconds=1), clock=lambda: now[0])

    def end(count: int, seconds: float) -> None:
        for _ in range(count):
            watch.end(watch.begin({"type": "http"}, 0.0), "id", "/r", "", 200, seconds)

    end(25, 2.0)
    end(5, 0.5)
    now[0] = 1.0
    end(1, 2.0)
    assert [line["omitted"] for line in log_lines] == [*[0] * 10, 15]


class RecordedSpan(NonRecordingSpan):
    """A span that remembers what it is told."""

    def __init__(self, context: SpanContext, name: str, parent: SpanContext, start: int) -> None:
        super().__init__(context)
        self.name, self.parent, self.start, self.stop = name, parent, start, 0
        self.attributes: dict[str, Any] = {}
        self.failed = False

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def update_name(self, name: str) -> None:
        self.name = name

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.failed = True

    def end(self, end_time: int | None = None) -> None:
        self.stop = end_time or time.time_ns()


@dataclass
class Recorder(TracerProvider, Tracer):
    """A provider of OpenTelemetry that keeps the spans; the SDK need not be installed."""

    spans: list[RecordedSpan] = field(default_factory=list)

    def get_tracer(self, *_: Any, **__: Any) -> Tracer:
        return self

    def start_span(self, name: str, context: Context | None = None, *_: Any, start_time: Any = 0, **__: Any) -> Any:
        parent = get_current_span(context).get_span_context()
        trace = parent.trace_id or 7
        own = SpanContext(trace, 100 + len(self.spans), False, TraceFlags(TraceFlags.SAMPLED))
        self.spans.append(RecordedSpan(own, name, parent, start_time))
        return self.spans[-1]

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def named(self, name: str) -> RecordedSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What an application traces with."""
    recorder = Recorder()
    monkeypatch.setattr("serving.app.start_tracing", lambda _: Tracing(recorder))
    return recorder


TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def test_a_request_is_a_span_below_its_callers_with_one_for_each_stage(
    server_settings: Settings, recorder: Recorder
) -> None:
    headers = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01"}
    with TestClient(create_app(server_settings.model_copy(update={"tracing": True}))) as client:
        response = client.post("/v1/recommend", json={"history": ["item-11"]}, headers=headers)
        client.get("/healthz")
    span = recorder.named("POST /v1/recommend")
    assert (span.get_span_context().trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/recommend",
        "http.response.status_code": 200,
        "windfire.request_id": response.headers["X-Request-ID"],
        "windfire.served_by": "nezha",
    }
    children = [each for each in recorder.spans if each.parent.span_id == span.get_span_context().span_id]
    assert [child.name for child in children] == list(STAGES)
    assert all(span.start <= child.start <= child.stop for child in children)
    assert not recorder.named("GET /healthz").parent.is_valid


def test_the_engine_is_a_span_below_the_front_ends() -> None:
    recorder = Recorder()
    began = time.time_ns()
    Tracing(recorder).engine(f"00-{TRACE:032x}-{PARENT:016x}-01", began, answer((0.001, 0.002, 0.003)))
    span = recorder.named("engine")
    assert (span.get_span_context().trace_id, span.parent.span_id, span.start) == (TRACE, PARENT, began)
    filtered, decoded, laid = (recorder.named(name) for name in ("filter", "decode", "slate"))
    assert (filtered.stop, decoded.stop) == (decoded.start, laid.start)
    assert (laid.stop - laid.start, abs(laid.stop - span.stop) < 10) == (3_000_000, True)


def test_tracing_without_its_packages_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("opentelemetry."):
            raise ImportError(name, name=name)
        return known(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"WINDFIRE_TRACING.*windfire\[otel\]"):
        start_tracing("x")
