"""What /metrics shows; registries of one application's own, so that two in one process do not mix.

The engine's counters stand apart, because several front-ends may share one engine process: it alone counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from feature_store.reading import Status
from serving.worker_values import Counter, Gauge, Histogram, Registry

if TYPE_CHECKING:
    from feature_store.reading import Reading
    from serving.worker_values import WorkerValues

_AGES: Final = (1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 31_536_000.0)
_SECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5)


class EngineMetrics:
    """The engine's counters, in the process that decodes.

    Args:
        values: where they are kept together with those of a front-end in this process, which shows both.

    Attributes:
        decode: seconds of one decoded batch.
        batch: requests per decoded batch.
        late: recommend requests refused for their deadline, at once or when their turn came.
        queue: recommend requests waiting for the model.
        bundle: 1 for the version that answers.
        reloads: bundles put in, or refused, by result.
    """

    def __init__(self, values: WorkerValues | None = None) -> None:
        self.registry = registry = Registry(values)
        self.decode = Histogram(
            "windfire_decode_seconds", "Seconds per decoded batch.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "windfire_decode_batch", "Requests per decoded batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.late = Counter(
            "windfire_late",
            "Requests whose deadline could not be kept, or passed in the queue.",
            ["when"],
            registry=registry,
        )
        self.queue = Gauge("windfire_engine_queue", "Requests waiting for the model.", registry=registry)
        self.bundle = Gauge("windfire_bundle", "1 for the bundle that answers.", ["version"], registry=registry)
        self.reloads = Counter("windfire_bundle_reloads", "Bundles put in or refused.", ["result"], registry=registry)

    def render(self) -> bytes:
        """The Prometheus text format; empty where the front-end's shows it."""
        return self.registry.render() if self.registry.values is None else b""


class Metrics:
    """The front-end's counters.

    Args:
        values: of this process, where it is one of several workers.

    Attributes:
        requests: seconds per request by route template, tier (recommend's served_by) and status.
        stages: seconds per stage of `serving.timing` and request that came so far.
        items: items answered, by source.
        ineligible: items that an independent look at the final slate had to take out; must stay 0.
        unknown_items: item ids in histories that the catalog does not have.
        events: event rows by result.
        exposures_dropped: exposures that found the queue full or the disk failing.
        history_failures: durable events whose merge into a history failed; they are tried again.
        history_refused: merges in which a key of the feature store held something else than a history.
        histories_behind: 1 while durable events are not in the feature store.
        feature_reads: reads by view, status and reason.
        feature_seconds: of one read by view.
        feature_age: seconds from a value's event time, or from a history's newest entry, to its read.
        connected: 1 while the engine can be asked; one in this process always can.
        lost: recommend requests whose engine process went away before its answer.
        refusals: requests that their key did not let through, by code.
        connections: connections that ended before their time, by reason.
    """

    def __init__(self, values: WorkerValues | None = None) -> None:
        self.registry = registry = Registry(values)
        self.requests = Histogram(
            "windfire_request_seconds",
            "Seconds per request.",
            ["route", "tier", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "windfire_stage_seconds", "Seconds per stage of a request.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.items = Counter("windfire_items", "Items answered.", ["source"], registry=registry)
        self.ineligible = Counter(
            "windfire_ineligible_items", "Ineligible items caught in a final slate; must stay 0.", registry=registry
        )
        self.unknown_items = Counter(
            "windfire_history_unknown_items", "Item ids of histories outside the catalog.", registry=registry
        )
        self.events = Counter("windfire_events", "Event rows.", ["result"], registry=registry)
        self.exposures_dropped = Counter("windfire_exposures_dropped", "Exposures not written.", registry=registry)
        self.history_failures = Counter(
            "windfire_history_failures", "Durable events not yet in a history.", registry=registry
        )
        self.history_refused = Counter(
            "windfire_history_refused", "Merges that met a key of another type.", registry=registry
        )
        self.histories_behind = Gauge(
            "windfire_histories_behind", "1 while events are not in the feature store.", registry=registry
        )
        self.feature_reads = Counter(
            "windfire_feature_reads", "Reads of features.", ["view", "status", "reason"], registry=registry
        )
        self.feature_seconds = Histogram(
            "windfire_feature_read_seconds", "Seconds per read of features.", ["view"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.feature_age = Histogram(
            "windfire_feature_age_seconds", "Age of features when they were read.", ["view"], buckets=_AGES,
            registry=registry,
        )  # fmt: skip
        self.connected = Gauge("windfire_engine_connected", "1 while the engine can be asked.", registry=registry)
        self.connected.set(1)
        self.lost = Counter("windfire_engine_lost", "Requests whose engine process went away.", registry=registry)
        self.refusals = Counter("windfire_refusals", "Requests refused for their key.", ["code"], registry=registry)
        self.connections = Counter(
            "windfire_connections_ended", "Connections ended by a limit.", ["reason"], registry=registry
        )

    def observe(self, route: str, tier: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self.requests.labels(route, tier, str(status)).observe(seconds)

    def observe_reading(self, view: str, reading: Reading, seconds: float, now: int) -> None:
        """Count one read of a view; `now` in UTC microseconds."""
        self.feature_reads.labels(view, reading.status.value, reading.reason.value.replace(" ", "_")).inc()
        self.feature_seconds.labels(view).observe(seconds)
        if reading.status is not Status.MISSING and reading.event_time is not None:
            self.feature_age.labels(view).observe((now - reading.event_time) / 1e6)

    def render(self, engine: bytes = b"") -> bytes:
        """The Prometheus text format, with the engine's part behind it."""
        return self.registry.render() + engine


class CrewMetrics:
    """What the parent of several workers knows.

    Attributes:
        wanted: workers that there should be.
        up: workers that take requests.
        deaths: workers that ended unasked.
    """

    def __init__(self, values: WorkerValues | None = None) -> None:
        self.registry = registry = Registry(values)
        self.wanted = Gauge("windfire_workers_wanted", "Workers that there should be.", registry=registry)
        self.up = Gauge("windfire_workers_up", "Workers that take requests.", registry=registry)
        self.deaths = Counter("windfire_worker_deaths", "Workers that ended unasked.", ["worker"], registry=registry)
