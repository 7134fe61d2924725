from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from feature_store.history import EmbeddedHistoryStore, HistoryEvent, Status, load_tables, merge_events
from recsys.errors import CorruptionError, DataError, InputError, UnavailableError
from recsys.records import EVENTS, POSITIVE_ACTIONS

KEPT = 6
USERS = ["ann", "bob", "u" * 5_000]


def click(number: int, time: int | None = None) -> HistoryEvent:
    return HistoryEvent(f"i{number % 5}", number if time is None else time, number, f"e{number}", "click", "home")


def canonical(events: list[HistoryEvent]) -> list[HistoryEvent]:
    return sorted(events, key=lambda event: (event.time, event.seq, event.event_id))


CLICKS = st.lists(st.integers(0, 40).map(lambda number: click(number, number * 7 % 11)), max_size=5)


class HistoryMachine(RuleBasedStateMachine):
    """Merges in any order, late events, repetitions and deletions, against the events that were ever merged."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = EmbeddedHistoryStore(Path(self.directory.name), limit=KEPT)
        self.merged: dict[str, set[HistoryEvent]] = {user: set() for user in USERS}

    def expected(self, user: str) -> list[HistoryEvent]:
        return canonical(list(self.merged[user]))[-KEPT:]

    @rule(user=st.sampled_from(USERS), events=CLICKS)
    def merge(self, user: str, events: list[HistoryEvent]) -> None:
        before = set(self.expected(user))
        self.merged[user] |= set(events)
        assert self.store.merge(user, events) == len(set(self.expected(user)) - before)

    @rule(users=st.dictionaries(st.sampled_from(USERS), CLICKS))
    def merge_many(self, users: dict[str, list[HistoryEvent]]) -> None:
        self.store.merge_many(users)
        for user, events in users.items():
            self.merged[user] |= set(events)

    @rule(user=st.sampled_from(USERS))
    def delete(self, user: str) -> None:
        assert self.store.delete(user) == bool(self.merged[user])
        self.merged[user].clear()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = EmbeddedHistoryStore(Path(self.directory.name), limit=KEPT)

    @rule(limit=st.integers(0, KEPT + 1))
    def read_less(self, limit: int) -> None:
        for user, history in zip(USERS, self.store.get_many(USERS, limit=limit), strict=True):
            assert history == self.store.get(user, limit=limit)
            assert history.events == self.expected(user)[max(0, len(self.expected(user)) - limit) :]

    @invariant()
    def equals_the_oracle(self) -> None:
        for user, history in zip(USERS, self.store.get_many(USERS), strict=True):
            assert history.events == self.expected(user)
            assert (history.status is Status.PRESENT) == bool(self.merged[user])

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


HistoryMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=15)
TestHistoryMachine = HistoryMachine.TestCase


@given(
    st.lists(st.builds(lambda n, time: click(n % 4, time), st.integers(0, 9), st.integers(0, 5)), max_size=8),
    st.data(),
)
def test_of_events_that_share_an_id_the_first_in_order_wins_whatever_came_first(
    events: list[HistoryEvent], data: st.DataObject
) -> None:
    first: dict[str, HistoryEvent] = {}
    for event in canonical(events):
        first.setdefault(event.event_id, event)
    shuffled = data.draw(st.permutations(events))
    cut = data.draw(st.integers(0, len(events)))
    assert merge_events(merge_events([], shuffled[:cut], 99), shuffled[cut:], 99) == list(first.values())


def test_the_newest_events_stay() -> None:
    assert merge_events([click(n) for n in range(5)], [click(7), click(6)], 3) == [click(4), click(6), click(7)]


def test_a_value_is_a_format_byte_two_times_and_messagepack(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path, clock=lambda: 77)
    store.merge("ann", [click(2), click(1)])
    assert store.get("ann").created_at == 77
    store.close()
    with lmdb.open(str(tmp_path)) as environment, environment.begin() as transaction:
        value = transaction.get(b"wf:{ann}:history:1") or b""
    assert struct.unpack("<Bqq", value[:17]) == (1, 2, 77)
    assert msgspec.msgpack.decode(value[17:]) == [list(click(1)), list(click(2))]


def test_long_ids_have_histories_of_their_own(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path)
    long = "u" * 5_000
    pretender = "sha256-" + hashlib.sha256(long.encode()).hexdigest()
    users = [long, long + "u", "ü" * 240, "ü" * 241, pretender, "}:history:1", "a}", "a", ""]
    for number, user in enumerate(users):
        store.merge(user, [click(number)])
    assert [history.events for history in store.get_many(users)] == [[click(n)] for n in range(len(users))]
    store.close()


def test_a_merge_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    times = iter(range(100))
    store = EmbeddedHistoryStore(tmp_path, clock=lambda: next(times))
    assert store.merge("ann", [click(1), click(1)]) == 1
    assert store.merge("ann", [click(1)]) == 0
    assert store.get("ann").created_at == 0
    assert store.merge("nobody", []) == 0
    assert store.get("nobody").status is Status.MISSING
    store.close()


@pytest.mark.parametrize("damage", [lambda value: b"\x09" + value[1:], lambda value: value[:-3], lambda value: b""])
def test_a_damaged_value_names_the_user(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = EmbeddedHistoryStore(tmp_path)
    store.merge("ann", [click(1)])
    with store._environment.begin(write=True) as transaction:
        key = b"wf:{ann}:history:1"
        transaction.put(key, damage(transaction.get(key) or b""))
    with pytest.raises(CorruptionError, match="ann"):
        store.get("ann")
    assert store.delete("ann")
    store.close()


def test_a_full_store_keeps_what_it_has(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path, map_bytes=128 << 10)
    store.merge("ann", [click(1)])
    with pytest.raises(UnavailableError, match="map_bytes"):
        store.merge_many({f"u{n}": [click(k) for k in range(100)] for n in range(200)})
    assert store.get("ann").events == [click(1)]
    assert store.get("u0").status is Status.MISSING
    store.close()


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit"):
        EmbeddedHistoryStore(tmp_path, limit=0)


WRITER = """
import sys
from pathlib import Path
from feature_store.history import EmbeddedHistoryStore, HistoryEvent
store = EmbeddedHistoryStore(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    store.merge("shared", [HistoryEvent("i", number, 0, f"e{number}", "click", None)])
    print(number, flush=True)
"""


def start_writer(directory: Path, first: int, end: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(directory), str(first), str(end)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_and_read_one_store(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path)
    writers = [start_writer(tmp_path, first, first + 25) for first in (0, 100)]
    lengths = [0]
    for writer in writers:
        with writer:
            assert writer.stdout is not None
            lengths.extend(len(store.get("shared").events) for _ in writer.stdout)
        assert writer.returncode == 0
    assert lengths == sorted(lengths)
    assert {event.time for event in store.get("shared").events} == {*range(25), *range(100, 125)}
    store.close()


def test_kill_minus_nine_of_a_writer_loses_no_merge_and_leaves_the_store_usable(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, 0, 10**9)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.communicate()[0].split("\n")[:-1]]
    store = EmbeddedHistoryStore(tmp_path)
    held = {event.time for event in store.get("shared").events}
    assert set(acknowledged) <= held
    assert store.merge("shared", [click(10**6)]) == 1
    store.close()


def test_tables_load_once(tmp_path: Path) -> None:
    actions = ["click", "impression", "purchase", "click"]
    rows = [
        {"event_id": f"e{n}", "user_id": f"u{n % 2}", "item_id": f"i{n}", "time": 9 - n, "seq": n, "action": action}
        for n, action in enumerate(actions)
    ]
    (tmp_path / "events").mkdir()
    for number, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row], schema=EVENTS), tmp_path / "events" / f"part-{number}.parquet")
    store = EmbeddedHistoryStore(tmp_path / "store")
    assert load_tables(store, tmp_path, POSITIVE_ACTIONS, batch_rows=2) == 3
    assert load_tables(store, tmp_path, POSITIVE_ACTIONS) == 0
    assert store.get("u0").events == [
        HistoryEvent("i2", 7, 2, "e2", "purchase", None),
        HistoryEvent("i0", 9, 0, "e0", "click", None),
    ]
    assert [event.item_id for event in store.get("u1").events] == ["i3"]
    store.close()


def test_a_directory_without_events_is_named(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path / "store")
    with pytest.raises(DataError, match="windfire import"):
        load_tables(store, tmp_path, POSITIVE_ACTIONS)
    store.close()
