"""Any order of puts, merges, deletions, late and repeated events: LMDB, Redis and a plain model say the same."""

from __future__ import annotations

import itertools
import tempfile
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from benchmarks.redis_server import RedisServer
from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.opening import Timeouts, open_store
from feature_store.reading import Reading
from feature_store.redis_store import RedisFeatureStore
from feature_store.store import FeatureStore, Merge, Write, now_micros
from feature_store.views import View

SECOND = 1_000_000
NOW = 1_800_000_000_000_000
TTL, KEEP, LIMIT = 600, 1000, 4
COUNTS = View(
    "counts", "user", (Field("clicks", Kind.INT64, optional=True),), 1, "team",
    ttl=timedelta(seconds=TTL), keep=timedelta(seconds=KEEP),
)  # fmt: skip
RECENT = View(
    "recent", "user", (Field("item", Kind.STRING),), 1, "team",
    ttl=timedelta(seconds=TTL), keep=timedelta(seconds=KEEP), history=LIMIT,
)  # fmt: skip
USERS = ["ann", "bob"]
PATIENT = Timeouts(connect=timedelta(seconds=20), answer=timedelta(seconds=20))
_PREFIX = itertools.count()

AGES = st.integers(-2, 12).map(lambda step: step * 100)  # seconds before now; up to five minutes ahead are taken
CREATED = st.integers(0, 1)
CLICKS = st.none() | st.integers(0, 2)
ENTRIES = st.lists(st.tuples(AGES, st.integers(0, 1), st.integers(0, 6), st.sampled_from("xy")), max_size=4)


class Model:
    """What the stores promise, from the set of all writes ever made; nothing is ever overwritten or forgotten here."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, int, bool, bool, int]]] = {user: [] for user in USERS}
        self.entries: dict[str, set[tuple[int, int, str, str]]] = {user: set() for user in USERS}
        self.floors: dict[str, list[int]] = {user: [] for user in USERS}

    def value(self, user: str, now: int) -> tuple[Any, ...]:
        kept = [write for write in self.values[user] if now - write[0] < KEEP * SECOND]
        if not kept:
            return ("MISSING", "absent", None, None)
        event_time, _, deleted, empty, clicks = max(kept)
        if deleted:
            return ("MISSING", "deleted", event_time, None)
        stale = now - event_time > TTL * SECOND
        values = {"clicks": None if empty else clicks}
        return ("STALE", "ttl", event_time, values) if stale else ("PRESENT", "", event_time, values)

    def history(self, user: str, now: int) -> tuple[Any, ...]:
        floor = max(self.floors[user], default=None)
        held = sorted(
            (entry for entry in self.entries[user] if floor is None or entry[0] > floor),
            key=lambda entry: (*entry[:3], len(entry[3]), entry[3]),  # MessagePack begins with the length
        )
        greatest = {entry[:3]: entry for entry in held}  # of two that agree in their order, the greater stays
        newest = [entry for entry in list(greatest.values())[-LIMIT:] if now - entry[0] < KEEP * SECOND]
        if not newest:
            deleted = floor is not None and now - floor < KEEP * SECOND
            return ("MISSING", "deleted", floor, None) if deleted else ("MISSING", "absent", None, None)
        unique = {entry[2]: entry for entry in reversed(newest)}
        stale = now - newest[-1][0] > TTL * SECOND
        rows = sorted(unique.values())
        return ("STALE" if stale else "PRESENT", "ttl" if stale else "", newest[-1][0], rows)


def entry(time: int, seq: int, event_id: str, item: str) -> dict[str, Any]:
    return {"time": time, "seq": seq, "event_id": event_id, "item": item}


def seen(reading: Reading) -> tuple[Any, ...]:
    found = reading.values if reading.entries is None else reading.entries
    return (reading.status, reading.reason, reading.event_time, found)


class StoresMachine(RuleBasedStateMachine):
    server: RedisServer | None = None

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now = NOW
        self.prefix = f"m{next(_PREFIX)}-"
        self.model = Model()
        self.stores: list[FeatureStore] = [EmbeddedFeatureStore(Path(self.directory.name), clock=self.clock)]
        if self.server is not None:
            redis = open_store(self.server.address, PATIENT)
            assert isinstance(redis, RedisFeatureStore)
            redis._clock = self.clock
            self.stores.append(redis)

    def clock(self) -> int:
        return self.now

    def ago(self, age: int) -> int:
        """Whole hundreds of seconds, so that equal times come about although time goes on."""
        return self.now // (100 * SECOND) * 100 * SECOND - age * SECOND

    @rule(user=st.sampled_from(USERS), age=AGES, created=CREATED, clicks=CLICKS, delete=st.booleans())
    def put(self, user: str, age: int, created: int, clicks: int | None, delete: bool) -> None:
        time = self.ago(age)
        values = None if delete else {"clicks": clicks}
        kept = self.now - time < KEEP * SECOND
        before = self.model.value(user, self.now)
        write = (time, created, delete, not delete and clicks is None, 0 if delete else clicks or 0)
        new = kept and write not in self.model.values[user] and all(write > other for other in self.model.values[user])
        if kept:
            self.model.values[user].append(write)
        for store in self.stores:
            assert store.put([Write(COUNTS, self.prefix + user, values, time, created)]) == [new]
        assert new or before == self.model.value(user, self.now)

    @rule(user=st.sampled_from(USERS), entries=ENTRIES)
    def merge(self, user: str, entries: list[tuple[int, int, int, str]]) -> None:
        rows = [(self.ago(age), seq, f"e{number}", item) for age, seq, number, item in entries]
        kept = [row for row in rows if self.now - row[0] < KEEP * SECOND]
        self.model.entries[user] |= set(kept)
        merge = Merge(
            RECENT,
            self.prefix + user,
            [dict(zip(("time", "seq", "event_id", "item"), row, strict=True)) for row in rows],
        )
        for store in self.stores:
            store.merge([merge])

    @rule(user=st.sampled_from(USERS), number=st.integers(0, 6))
    def merge_much(self, user: str, number: int) -> None:
        """So much that a tail must be folded."""
        rows = [(self.ago(300), 0, f"e{number}", letter * 1500) for letter in "abc"]
        self.model.entries[user] |= set(rows)
        for store in self.stores:
            store.merge([Merge(RECENT, self.prefix + user, [entry(*row)]) for row in rows])

    @rule(user=st.sampled_from(USERS), age=AGES)
    def delete_history(self, user: str, age: int) -> None:
        time = self.ago(age)
        kept = self.now - time < KEEP * SECOND
        if kept:
            self.model.floors[user].append(time)
        for store in self.stores:
            assert store.put([Write(RECENT, self.prefix + user, None, time)]) == [kept]

    @rule(seconds=st.sampled_from([1, 50, 500]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule()
    def sweep(self) -> None:
        embedded = self.stores[0]
        assert isinstance(embedded, EmbeddedFeatureStore)
        embedded.sweep([COUNTS, RECENT])

    @initialize()
    def begin(self) -> None:
        """Hypothesis wants a rule that comes first, so that an example without any other is checked too."""

    @invariant()
    def every_store_says_what_the_model_says(self) -> None:
        expected = [self.model.value(user, self.now) for user in USERS]
        expected += [self.model.history(user, self.now) for user in USERS]
        wanted = [(view, self.prefix + user) for view in (COUNTS, RECENT) for user in USERS]
        for store in self.stores:
            assert [seen(reading) for reading in store.read(wanted)] == expected

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.directory.cleanup()


QUICK = settings(max_examples=60, stateful_step_count=15, deadline=None)


def test_embedded_store_and_model() -> None:
    run_state_machine_as_test(StoresMachine, settings=QUICK)


def test_both_stores_and_model(server: RedisServer) -> None:
    run_state_machine_as_test(type("BothMachine", (StoresMachine,), {"server": server}), settings=QUICK)


WRITERS, EACH = 16, 25


def write_shuffled(store: FeatureStore, writer: int, base: int, failures: list[BaseException]) -> None:
    """Every writer's own times, each divisible by a hundred plus its number, in an order of its own."""
    try:
        for number in np.random.default_rng(writer).permutation(EACH).tolist():
            time = base + number * 100 + writer
            store.put([Write(COUNTS, "crowd", {"clicks": time}, time)])
            store.merge([Merge(LONG, "crowd", [{"time": time, "seq": 0, "event_id": str(time), "item": "i" * 60}])])
    except BaseException as error:
        failures.append(error)
        raise


LONG = View("long", "user", (Field("item", Kind.STRING),), 1, "team", ttl=timedelta(hours=1), history=150)


def race(stores: list[FeatureStore]) -> None:
    base, failures = now_micros() - 10**7, list[BaseException]()
    threads = [
        threading.Thread(target=write_shuffled, args=(store, writer, base, failures))
        for writer, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest, history = stores[0].read([(COUNTS, "crowd"), (LONG, "crowd")])
    written = sorted(base + number * 100 + writer for number in range(EACH) for writer in range(WRITERS))
    assert failures == []
    assert newest.values == {"clicks": written[-1]}
    assert [entry[0] for entry in history.entries or []] == written[-150:]


def test_sixteen_writers_end_with_the_newest_on_the_embedded_store(tmp_path: Path) -> None:
    store = EmbeddedFeatureStore(tmp_path)
    race([store] * WRITERS)
    store.close()


def test_sixteen_writers_end_with_the_newest_on_redis(server: RedisServer) -> None:
    stores = [open_store(server.address, PATIENT) for _ in range(WRITERS)]
    race(stores)
    for store in stores:
        store.close()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_three_writes_never_matters(tmp_path: Path, order: tuple[int, ...]) -> None:
    now = now_micros()
    writes = [Write(COUNTS, "ann", values, now, now) for values in ({"clicks": 1}, {"clicks": 2}, {"clicks": None})]
    store = EmbeddedFeatureStore(tmp_path)
    for place in order:
        store.put([writes[place]])
    assert store.read([(COUNTS, "ann")])[0].values == {"clicks": None}
    store.close()
