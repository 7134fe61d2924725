"""`windfire bench features`: times of the feature store on Redis and LMDB, beside raw commands and beside Feast."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
import psutil
import redis
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Bounded

from benchmarks import features_faults
from benchmarks.decoding_parts.timing import take_turns
from benchmarks.features_feast import PROJECT, PYTHON, FeastReader
from benchmarks.features_http import event_visible
from benchmarks.figures import Figure, Report, environment, now
from benchmarks.redis_server import RedisServer
from benchmarks.settings_file import load_settings
from feature_store.fields import Field, Kind
from feature_store.opening import Timeouts, open_hashes, open_store
from feature_store.reading import Status
from feature_store.redis_hashes import FeastHashes
from feature_store.store import Merge, Write, now_micros
from feature_store.views import View
from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from feature_store.reading import Reading, Wanted
    from feature_store.store import FeatureStore

    Times = npt.NDArray[np.float64]

CONFIG: Final = Path(__file__).with_name("features.yaml")
RAW: Final = ("raw_pipeline", "raw_mget")
_DRAWS: Final = 1000  # of the bootstrap over rounds
_BATCH: Final = 500
_MIB: Final = 1 << 20
_WAIT: Final = timedelta(seconds=30)  # a pause of the machine is a slow read here, not a missing one
Positive = Annotated[int, Bounded(ge=1)]


@dataclass(frozen=True, slots=True)
class Beside:
    """Something else that reads the same values.

    Attributes:
        read: given the number of the read.
        times: (R,) milliseconds that it took itself, where the call also waits for something else.
    """

    read: Callable[[int], object]
    times: Callable[[], Times] | None = None


class FeaturesSettings(BaseModel):
    """The whole benchmark; see features.yaml.

    Attributes:
        seed: of values, entities and order.
        entities: of one read, three views each.
        stored: entities in the stores.
        dimensions: of the vector.
        rounds: reads per method and number of entities.
        writes: puts, and merges.
        history: events of the history that is merged into.
        soak: reads of one entity in a row, per store.
        visible: events over HTTP, per store.
        kills: of a Redis master under load.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    entities: Annotated[list[Positive], Bounded(min_length=1)]
    stored: Positive
    dimensions: Positive
    rounds: Annotated[int, Bounded(ge=20)]
    writes: Annotated[int, Bounded(ge=20)]
    history: Positive
    soak: Annotated[int, Bounded(ge=1000)]
    visible: Annotated[int, Bounded(ge=20)]
    kills: Annotated[int, Bounded(ge=0)]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> Self:
        """Read the settings.

        Raises:
            ConfigError: see `load_settings`.
        """
        return load_settings(cls, path, quick=quick)


def declared(settings: FeaturesSettings) -> tuple[list[View], View]:
    """Three views of one value, and a history."""
    names = ("clicks", "carts", "purchases", "likes", "impressions", "days")
    ttl = timedelta(days=7)
    profile = (Field("country", Kind.STRING), Field("segment", Kind.STRING), Field("brands", Kind.STRING_LIST, 5),
               Field("age", Kind.INT64, optional=True), Field("spent", Kind.FLOAT64))  # fmt: skip
    views = [
        View("counts", "user", tuple(Field(name, Kind.INT64) for name in names), 1, "bench", ttl=ttl),
        View("profile", "user", profile, 1, "bench", ttl=ttl),
        View("taste", "user", (Field("vector", Kind.FLOAT16_VECTOR, settings.dimensions),), 1, "bench", ttl=ttl),
    ]
    events = (Field("item_id", Kind.STRING), Field("action", Kind.STRING))
    return views, View("recent", "user", events, 1, "bench", history=settings.history)


def bench(
    settings: FeaturesSettings,
    command: str,
    *,
    say: Callable[[str], object],
    registry: Path | None = None,
    feast: Path = PYTHON,
) -> Report:
    """Start a Redis, fill it and an embedded store alike, and measure.

    Args:
        settings: what to measure.
        command: the command line that repeats it.
        say: told what is measured, and what is left out.
        registry: with a published bundle, for events over HTTP; None: they are left out.
        feast: Python of an environment with Feast; left out where it is absent.

    Raises:
        UnavailableError: no redis-server, or Feast is there and does not work.
        DataError: a store did not give back what was written.
    """
    started = now()
    figures: list[Figure] = []
    versions = {"redis_py": redis.__version__}
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server, ExitStack() as stack:
        stores: dict[str, FeatureStore] = {
            "redis": stack.enter_context(closing(open_store(server.address, Timeouts(_WAIT, _WAIT)))),
            "embedded": stack.enter_context(closing(open_store(f"lmdb:{Path(name) / 'lmdb'}"))),
        }
        raw = stack.enter_context(redis.Redis(port=server.port, protocol=2))
        views, recent = declared(settings)
        say(f"filling the stores with {settings.stored:,} entities")
        at = now_micros()
        _fill(stores, views, settings, at)
        reader = _feast(stack, feast, server, Path(name), views, settings, at, say)
        if reader is not None:
            versions["feast"] = reader.version
        for place, count in enumerate(settings.entities):
            say(f"reading 3 views of {count} entities")
            beside = {} if reader is None else _beside(stack, reader, server, views, place, settings)
            figures += _reads(stores, raw, views, count, settings, beside)
        say("writing")
        for store_name, store in stores.items():
            figures += _writes(store_name, store, views[0], recent, settings)
        for store_name, store in stores.items():
            say(f"{settings.soak:,} reads in a row: {store_name}")
            figures += _soak(store_name, store, views, settings)
        if registry is None:
            say("events over HTTP are left out: give --registry with a published bundle")
        else:
            say("events over HTTP")
            rng = np.random.default_rng(settings.seed)
            addresses = {"embedded": "", "redis": server.address}
            figures += event_visible(addresses, registry, settings.visible, rng, quantiles)
        versions["redis_server"] = _version(server)
    figures += features_faults.measure(settings.kills, say)
    return Report(command, settings.model_dump(), [settings.seed], figures, started, environment() | versions)


def _fill(stores: Mapping[str, FeatureStore], views: Sequence[View], settings: FeaturesSettings, at: int) -> None:
    writes: list[Write] = []
    for number, told in enumerate(_values(views, settings)):
        writes += [Write(view, _name(number), values, at) for view, values in zip(views, told, strict=True)]
        if len(writes) >= _BATCH or number == settings.stored - 1:
            for store in stores.values():
                store.put(writes)
            writes = []


def _values(views: Sequence[View], settings: FeaturesSettings) -> Iterator[tuple[dict[str, Any], ...]]:
    """Values of the three views, entity by entity; the same at every call."""
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.stored):
        counts = dict(zip(views[0].names, rng.integers(0, 500, 6).tolist(), strict=True))
        profile = {"country": "DE", "segment": f"segment-{rng.integers(40)}", "spent": float(rng.gamma(2, 50)),
                   "brands": [f"brand-{brand}" for brand in rng.integers(0, 900, 5).tolist()],
                   "age": int(rng.integers(18, 80))}  # fmt: skip
        # rounded to halves, so that all stores hold the same numbers
        yield counts, profile, {"vector": rng.normal(size=settings.dimensions).astype(np.float16)}


def _feast(
    stack: ExitStack,
    python: Path,
    server: RedisServer,
    folder: Path,
    views: Sequence[View],
    settings: FeaturesSettings,
    at: int,
    say: Callable[[str], object],
) -> FeastReader | None:
    if not python.is_file():
        say(f"Feast is left out: no {python}; `make feast` makes it")
        return None
    say("filling Feast with the same values")
    rows = [
        {"user_id": _name(number), **counts, **profile, "vector": taste["vector"].astype(np.float32).tolist()}
        for number, (counts, profile, taste) in enumerate(_values(views, settings))
    ]
    reads = [entities for count in settings.entities for entities in _drawn(count, settings)]
    address = f"127.0.0.1:{server.port}"
    return stack.enter_context(
        FeastReader(python, folder, address, counts=views[0].names, rows=rows, event_time=at, reads=reads)
    )


def _beside(
    stack: ExitStack,
    reader: FeastReader,
    server: RedisServer,
    views: Sequence[View],
    place: int,
    settings: FeaturesSettings,
) -> dict[str, Beside]:
    """Feast's own reads, and ours of its hashes."""
    count, first = settings.entities[place], place * settings.rounds
    wanted = [[(view, entity) for entity in entities for view in views] for entities in _drawn(count, settings)]
    layout = FeastHashes(PROJECT, "user_id")
    hashes = stack.enter_context(closing(open_hashes(server.address, layout, Timeouts(_WAIT, _WAIT))))
    if any(reading.status is not Status.PRESENT for reading in hashes.read(wanted[0])):
        raise DataError("Feast's hashes do not hold what was written", field="store", value="feast_hashes")
    return {
        "feast": Beside(lambda turn: reader(first + turn % settings.rounds),
                        lambda: reader.times(first + settings.rounds)[first:]),
        "feast_hashes": Beside(lambda turn: hashes.read(wanted[turn % settings.rounds])),
    }  # fmt: skip


def _drawn(count: int, settings: FeaturesSettings) -> list[list[str]]:
    """Entities of every read."""
    rng = np.random.default_rng([settings.seed, count])
    return [
        [_name(number) for number in rng.choice(settings.stored, count, replace=False).tolist()]
        for _ in range(settings.rounds)
    ]


def _name(number: int) -> str:
    return f"user-{number:08d}"


def _reads(
    stores: Mapping[str, FeatureStore],
    raw: redis.Redis,
    views: Sequence[View],
    count: int,
    settings: FeaturesSettings,
    beside: Mapping[str, Beside],
) -> list[Figure]:
    rng = np.random.default_rng([settings.seed, count, 1])
    wanted = [[(view, entity) for entity in entities for view in views] for entities in _drawn(count, settings)]
    keys = [[view.key(entity) for view, entity in one] for one in wanted]

    def raw_pipeline(turn: int) -> list[Any]:
        pipeline = raw.pipeline(transaction=False)
        for key in keys[turn % settings.rounds]:
            pipeline.get(key)
        return pipeline.execute()

    calls: dict[str, Callable[[int], Any]] = {
        "raw_pipeline": raw_pipeline,
        "raw_mget": lambda turn: raw.mget(keys[turn % settings.rounds]),
    }
    for name, store in stores.items():
        calls[name] = partial(_read, store, wanted)
        if any(reading.status is not Status.PRESENT for reading in calls[name](0)):
            raise DataError("a store does not hold what was written", field="store", value=name)
    calls |= {name: method.read for name, method in beside.items()}
    times = take_turns(calls, dict.fromkeys(calls, settings.rounds), rng)
    times |= {name: method.times() for name, method in beside.items() if method.times is not None}
    bytes_read = sum(len(value) for value in raw_pipeline(0))
    note = f"{3 * count} values, {bytes_read:,} bytes"
    figures = []
    for name in (*stores, *beside, *RAW):
        stem = f"features.{name}.entities{count}"
        figures += quantiles(stem, times[name], rng, note)
        if name != "raw_pipeline":
            figures.append(over(f"{stem}.over_raw", times[name], times["raw_pipeline"], rng))
    return figures


def _read(store: FeatureStore, wanted: Sequence[Sequence[Wanted]], turn: int) -> list[Reading]:
    return store.read(wanted[turn % len(wanted)])


def _writes(name: str, store: FeatureStore, view: View, recent: View, settings: FeaturesSettings) -> list[Figure]:
    rng = np.random.default_rng(settings.seed)
    base = now_micros() - 10**9
    events = [
        {"time": base + n, "seq": n, "event_id": f"event-{n:08d}", "item_id": f"item-{n % 997:06d}", "action": "click"}
        for n in range(settings.history + settings.writes)
    ]
    store.merge([Merge(recent, "history", events[: settings.history])])
    values = dict.fromkeys(view.names, 1)
    writes = [Write(view, _name(n % settings.stored), values, base + 10**9 + n) for n in range(settings.writes)]
    later = events[settings.history :]
    puts = np.array([_timed(partial(store.put, [write])) for write in writes])
    merges = np.array([_timed(partial(store.merge, [Merge(recent, "history", [event])])) for event in later])
    (held,) = store.read([(recent, "history")])
    if [entry[0] for entry in held.entries or []] != [event["time"] for event in events[-settings.history :]]:
        raise DataError("a history does not hold what was merged", field="store", value=name)
    durable = "flushed to the disk" if name == "embedded" else "in the server's memory"
    return [
        *quantiles(f"features.{name}.put", puts, rng, durable),
        *quantiles(f"features.{name}.merge", merges, rng, durable),
    ]


def _soak(name: str, store: FeatureStore, views: Sequence[View], settings: FeaturesSettings) -> list[Figure]:
    """Times in tenths; the numbers of a tenth are all that is kept."""
    process, tenth = psutil.Process(), settings.soak // 10
    wanted = [[(view, _name(number)) for view in views] for number in range(min(settings.stored, 1000))]
    medians, sizes = [], []
    for _ in range(10):
        times = np.array([_timed(partial(store.read, wanted[n % len(wanted)])) for n in range(tenth)])
        medians.append(float(np.median(times)))
        sizes.append(process.memory_info().rss)
    note = f"{tenth * 10:,} reads of 3 views of one entity"
    return [
        Figure(f"features.{name}.soak.p50_ratio", medians[-1] / medians[0], "ratio", n=tenth, note=note),
        Figure(f"features.{name}.soak.rss_growth_mib", (sizes[-1] - sizes[0]) / _MIB, "MiB", note=note),
    ]


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def quantiles(stem: str, times: Times, rng: np.random.Generator, note: str = "") -> list[Figure]:
    """p50 and p99 in milliseconds, each with the 95 % interval of resampled rounds."""
    draws = times[rng.integers(0, len(times), (_DRAWS, len(times)))]  # (D, R)
    figures = []
    for quantile in (50, 99):
        low, high = np.percentile(np.percentile(draws, quantile, axis=1), (2.5, 97.5))
        value = float(np.percentile(times, quantile))
        figures.append(Figure(f"{stem}.p{quantile}", value, "ms", float(low), float(high), len(times), note))
    return figures


def over(name: str, times: Times, raw: Times, rng: np.random.Generator) -> Figure:
    """Ratio of medians with the 95 % interval of resampled rounds; both were measured in the same rounds."""
    drawn = rng.integers(0, len(times), (_DRAWS, len(times)))  # (D, R)
    ratios = np.median(times[drawn], axis=1) / np.median(raw[drawn], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Figure(name, float(np.median(times) / np.median(raw)), "ratio", float(low), float(high), len(times))


def _version(server: RedisServer) -> str:
    with redis.Redis(port=server.port) as client:
        return str(client.info("server")["redis_version"])
