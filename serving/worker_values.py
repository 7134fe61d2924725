"""Metrics of several workers as one: each writes its values into a file of its own, and any of them adds all up.

A value is written where it changes, so a worker that is killed takes nothing with it, and its successor counts on in
the same file. Counters and histograms are summed over the files. A gauge stands for one worker that lives: it gets the
label `worker`. The types below are those of prometheus_client in every other respect, and without a file they are just
these; the hooks that they use (`_metric_init`, `_kwargs`) are not public: tests/serving/workers holds them to it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from bisect import bisect_left
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.registry import Collector

PARENT: Final = "parent"
"""Name of the process that is no worker, so that its gauges have no label."""

_VALUES, _LOCK = ".values", ".lock"
_LIBRARY: Final[Any] = MmapedDict  # which has no types
_GONE: Final = math.nan  # of a gauge whose labels were removed, or whose worker is starting anew


class WorkerValues:
    """The values of one process, in a file that the others read.

    Args:
        directory: of the files of all workers; created where absent.
        name: of the worker, which is its gauges' label; or `PARENT`.
    """

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._lock_file = os.open(directory / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)  # a reader that looks whether somebody lives holds it for a moment
        self._file = _LIBRARY(str(directory / f"{name}{_VALUES}"))
        self.lock = threading.Lock()
        self._functions: dict[str, Callable[[], float]] = {}
        for key, _, _ in list(self._file.read_all_values()):
            if _parsed(key).kind == "gauge":
                self._file.write_value(key, _GONE, 0.0)

    def read(self, key: str) -> float:
        """What the file has under a key; 0 where there is none."""
        with self.lock:
            return float(self._file.read_value(key)[0])

    def write(self, key: str, value: float) -> None:
        """Replace a value; the caller holds the lock."""
        self._file.write_value(key, value, 0.0)

    def call(self, key: str, function: Callable[[], float]) -> None:
        """Let a gauge be what a function returns, at each `refresh`."""
        self._functions[key] = function

    def forget(self, key: str) -> None:
        """Leave a gauge out from now on."""
        self._functions.pop(key, None)
        with self.lock:
            self.write(key, _GONE)

    def refresh(self) -> None:
        """Write down the gauges that are functions."""
        found = {key: float(function()) for key, function in list(self._functions.items())}
        with self.lock:
            for key, value in found.items():
                self.write(key, value)

    def render(self) -> bytes:
        """The Prometheus text format over all workers."""
        self.refresh()
        registry = CollectorRegistry()
        registry.register(_All(self.directory))
        return generate_latest(registry)

    def close(self) -> None:
        """Let go of the file; its counters stay."""
        self._file.close()
        os.close(self._lock_file)


def clean(directory: Path) -> None:
    """Remove what an earlier server counted; nobody may use the directory."""
    for path in [*directory.glob(f"*{_VALUES}"), *directory.glob(f"*{_LOCK}")]:
        path.unlink()


class Registry(CollectorRegistry):
    """A registry whose metrics may have values in a file.

    Attributes:
        values: the file; None = the memory of this process.
    """

    def __init__(self, values: WorkerValues | None = None) -> None:
        super().__init__()
        self.values = values

    def register(self, collector: Collector) -> None:
        """Add a metric.

        Raises:
            TypeError: it is not of this module's types, so that no other worker would show it.
        """
        if not isinstance(collector, _Kept):
            raise TypeError(f"{collector!r} is counted for one process only: take the types of serving.worker_values")
        super().register(collector)

    def render(self) -> bytes:
        """The Prometheus text format: of all workers, where there is a file."""
        return generate_latest(self) if self.values is None else self.values.render()


class _Value:
    """One number, as prometheus_client uses it, in the file."""

    def __init__(self, values: WorkerValues, kind: str, metric: Any, sample: str, labels: dict[str, str]) -> None:
        self.key = json.dumps([kind, metric._name, sample, labels, metric._documentation], sort_keys=True)  # noqa: SLF001
        self._values = values
        self._value = 0.0 if kind == "gauge" else values.read(self.key)
        self.set(self._value)

    def inc(self, amount: float) -> None:
        with self._values.lock:
            self._value += amount
            self._values.write(self.key, self._value)

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - the library's signature
        with self._values.lock:
            self._value = value
            self._values.write(self.key, value)

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """There are none."""

    def get_exemplar(self) -> None:
        return None


class _Kept(MetricWrapperBase):
    """A metric that knows where its values are kept; so do the metrics of its labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        *,
        registry: Registry | None = None,
        values: WorkerValues | None = None,
        **options: Any,
    ) -> None:
        self._values = values if registry is None else registry.values
        super().__init__(name, documentation, labelnames, registry=registry, **options)
        self._kwargs["values"] = self._values


class _Lasting(_Kept):
    """A metric whose labels stay once they were asked for; `labels` finds them again without checks and locks."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._known: dict[tuple[Any, ...], Self] = {}
        super().__init__(*arguments, **named)

    def labels(self, *labelvalues: Any, **labelkwargs: Any) -> Self:
        """See `prometheus_client.Counter`."""
        found = None if labelkwargs else self._known.get(labelvalues)
        if found is None:
            found = super().labels(*labelvalues, **labelkwargs)
            if labelvalues and all(type(value) is str for value in labelvalues):  # of other types more are equal
                self._known[labelvalues] = found
        return found

    def remove(self, *_: Any) -> None:
        """There is none: a count goes on."""
        raise TypeError(f"{self._name}: labels of a counter or histogram stay")


class Counter(_Lasting, prometheus_client.Counter):
    """See `prometheus_client.Counter`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        if self._values is not None:
            self._value = _Value(self._values, "counter", self, f"{self._name}_total", _labels(self))


class Gauge(_Kept, prometheus_client.Gauge):
    """See `prometheus_client.Gauge`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        if self._values is not None:
            self._value = _Value(self._values, "gauge", self, self._name, _labels(self))

    def set_function(self, f: Callable[[], float]) -> None:
        """See `prometheus_client.Gauge`."""
        super().set_function(f)
        if self._values is not None:
            self._values.call(self._value.key, f)

    def remove(self, *labelvalues: Any) -> None:
        """See `prometheus_client.Gauge`."""
        if self._values is not None:
            self._values.forget(self.labels(*labelvalues)._value.key)  # noqa: SLF001 - its own kind
        super().remove(*labelvalues)


class Histogram(_Lasting, prometheus_client.Histogram):
    """See `prometheus_client.Histogram`."""

    def _metric_init(self) -> None:
        super()._metric_init()
        if self._values is not None:
            kind, labels = "histogram", _labels(self)
            self._sum = _Value(self._values, kind, self, f"{self._name}_sum", labels)
            bounds = [{**labels, "le": _bound(bound)} for bound in self._upper_bounds]
            self._buckets = [_Value(self._values, kind, self, f"{self._name}_bucket", bound) for bound in bounds]

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """See `prometheus_client.Histogram`; the bucket is found by halving."""
        if exemplar is not None or math.isnan(amount):
            super().observe(amount, exemplar)
            return
        self._raise_if_not_observable()  # type: ignore[no-untyped-call]
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


def _labels(metric: Any) -> dict[str, str]:
    return dict(zip(metric._labelnames, metric._labelvalues, strict=True))  # noqa: SLF001


class _Key(NamedTuple):
    kind: str
    name: str
    sample: str
    labels: tuple[tuple[str, str], ...]
    documentation: str


@lru_cache(maxsize=20_000)
def _parsed(key: str) -> _Key:
    kind, name, sample, labels, documentation = json.loads(key)
    return _Key(kind, name, sample, tuple(labels.items()), documentation)


class _All:
    """The values of every file, added up."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        sums: defaultdict[_Key, float] = defaultdict(float)
        for path in sorted(self._directory.glob(f"*{_VALUES}")):
            alive = _is_held(path.with_suffix(_LOCK))
            for text, value in _read(path):
                key = _parsed(text)
                if key.kind != "gauge":
                    sums[key] += value
                elif alive and not math.isnan(value):
                    labels = key.labels if path.stem == PARENT else (*key.labels, ("worker", path.stem))
                    sums[key._replace(labels=labels)] = value
        metrics: dict[str, Metric] = {}
        for key, value in sums.items():
            if key.name not in metrics:
                metrics[key.name] = Metric(key.name, key.documentation, key.kind)
            if not key.sample.endswith("_bucket"):
                metrics[key.name].add_sample(key.sample, dict(key.labels), value)
        for key, bounds in _series(sums).items():
            _add_buckets(metrics[key.name], key, bounds)
        yield from metrics.values()


def _series(sums: dict[_Key, float]) -> dict[_Key, list[tuple[float, float]]]:
    """The buckets of each histogram without their bound: (bound, count), rising."""
    series: defaultdict[_Key, list[tuple[float, float]]] = defaultdict(list)
    for key, value in sums.items():
        if key.kind == "histogram" and key.sample.endswith("_bucket"):
            rest = tuple(label for label in key.labels if label[0] != "le")
            series[key._replace(labels=rest)].append((float(dict(key.labels)["le"]), value))
    return {key: sorted(bounds) for key, bounds in series.items()}


def _add_buckets(metric: Metric, key: _Key, bounds: Iterable[tuple[float, float]]) -> None:
    total = 0.0
    for bound, count in bounds:
        total += count
        metric.add_sample(key.sample, {**dict(key.labels), "le": _bound(bound)}, total)
    metric.add_sample(f"{key.name}_count", dict(key.labels), total)


def _read(path: Path) -> Iterator[tuple[str, float]]:
    """Key and value of everything in a file."""
    return ((key, value) for key, value, _, _ in _LIBRARY.read_all_values_from_file(str(path)))


def _bound(upper: float) -> str:
    """A bucket's upper end as the text format writes it."""
    return "+Inf" if math.isinf(upper) else repr(float(upper))


def _is_held(lock: Path) -> bool:
    """Whether the process that writes a file lives."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
