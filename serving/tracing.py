"""Traces by OpenTelemetry, where the settings ask for them: a span per request, one per stage, one in the engine.

The stages are known when a request is over, so their spans are made then, with the times that were noted. Where spans
go is said by OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_ENDPOINT above all.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from recsys.errors import ConfigError
from serving.timing import ENGINE_STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import Tracer, TracerProvider
    from starlette.types import Scope

    from serving.engine import EngineAnswer
    from serving.timing import Stage

_NAME: Final = "windfire"
_FAULT: Final = 500


def start_tracing(service: str) -> Tracing:
    """Trace this process by the installed SDK.

    Args:
        service: name under which its spans are found, unless OTEL_SERVICE_NAME says another.

    Raises:
        ConfigError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"tracing needs a package that is not installed: {error.name}",
            field="WINDFIRE_TRACING",
            value=True,
            remedy="pip install 'windfire[otel]', or set it to false",
        ) from error
    resource = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = SdkProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Makes spans.

    Args:
        provider: of OpenTelemetry; not made the process's global one.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer: Tracer = provider.get_tracer(_NAME)
        self._context = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Span:
        """A request has come, perhaps with a traceparent (W3C) whose child its span is then."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        began = time.time_ns()
        span = self._tracer.start_span(
            scope["method"], self._context.extract(headers), kind=SpanKind.SERVER, start_time=began
        )
        inside = set_span_in_context(span)
        carried: dict[str, str] = {}
        self._context.inject(carried, inside)
        return Span(self._tracer, span, inside, scope["method"], began, carried.get("traceparent"))

    def engine(self, traceparent: str, began: int, answer: EngineAnswer) -> None:
        """The engine has answered; its span is a child of the front-end's.

        Args:
            traceparent: of the front-end's span.
            began: nanoseconds of the epoch when the request came.
            answer: says how long the stages took, which were the last ones.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        now = time.time_ns()
        parent = self._context.extract({"traceparent": traceparent})
        span = self._tracer.start_span("engine", parent, kind=SpanKind.SERVER, start_time=began)
        span.set_attribute("windfire.bundle", answer.bundle_version)
        at = now - _nanoseconds(sum(answer.times or ()))
        for name, seconds in zip(ENGINE_STAGES, answer.times or (), strict=False):
            child = self._tracer.start_span(name, set_span_in_context(span), start_time=at)
            at += _nanoseconds(seconds)
            child.end(at)
        span.end(now)

    def close(self) -> None:
        """Send what waits."""
        shut: Any = getattr(self._provider, "shutdown", None)
        if shut is not None:
            shut()


class Span:
    """The span of one request.

    Attributes:
        traceparent: for those who are asked on the request's behalf; None where nothing is recorded.
    """

    def __init__(
        self, tracer: Tracer, span: Any, inside: Any, method: str, began: int, traceparent: str | None
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._inside = inside
        self._method = method
        self._began = began
        self.traceparent = traceparent

    def end(self, request_id: str, route: str, tier: str, status: int, stages: Sequence[Stage]) -> None:
        """The request is over."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.update_name(f"{self._method} {route}")
        span.set_attribute("http.request.method", self._method)
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("windfire.request_id", request_id)
        if tier:
            span.set_attribute("windfire.served_by", tier)
        if status >= _FAULT:
            span.set_status(StatusCode.ERROR)
        if span.is_recording():
            for stage in stages:
                begins = self._began + _nanoseconds(stage.began)
                child = self._tracer.start_span(stage.name, self._inside, start_time=begins)
                child.end(begins + _nanoseconds(stage.seconds))
        span.end()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
