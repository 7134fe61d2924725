from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from feature_store.embedded import EmbeddedFeatureStore
from feature_store.encoding import Codec
from feature_store.entries import EntryCodec
from feature_store.fields import Field, Kind
from feature_store.reading import TAIL, Reading, Reason, Status
from feature_store.store import Merge, Write, delete_entity, export_entity, now_micros
from feature_store.views import View
from recsys.errors import InputError, UnavailableError

HOUR = 3_600_000_000
NOW = 1_800_000_000_000_000
COUNTS = View("counts", "user", (Field("clicks", Kind.INT64),), 1, "team", ttl=timedelta(hours=1))
FOREVER = View("forever", "user", (Field("v", Kind.FLOAT16_VECTOR, 3),), 1, "team")
RECENT = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", ttl=timedelta(hours=1), history=4)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedFeatureStore]:
    store = EmbeddedFeatureStore(tmp_path / "store", clock=clock)
    yield store
    store.close()


def row(number: int, time: int, item: str = "i") -> dict[str, Any]:
    return {"time": time, "seq": number, "event_id": f"e{number}", "item": item}


def counts(store: EmbeddedFeatureStore, entity: str = "ann") -> Reading:
    return store.read([(COUNTS, entity)])[0]


def recent(store: EmbeddedFeatureStore) -> Reading:
    return store.read([(RECENT, "ann")])[0]


def test_the_newest_event_time_stays_and_then_the_newest_record(store: EmbeddedFeatureStore) -> None:
    write = [
        Write(COUNTS, "ann", {"clicks": clicks}, NOW - age, NOW - created)
        for clicks, age, created in [(1, 5, 5), (2, 9, 0), (3, 5, 4), (4, 5, 6)]
    ]
    assert store.put(write) == [True, False, True, False]
    assert counts(store) == Reading(Status.PRESENT, Reason.NONE, NOW - 5, NOW - 4, {"clicks": 3})
    assert store.put([write[2]]) == [False]


def test_a_value_grows_stale_and_then_is_gone(store: EmbeddedFeatureStore, clock: Clock) -> None:
    store.put([Write(COUNTS, "ann", {"clicks": 1}, NOW)])
    clock.now = NOW + HOUR
    assert counts(store).status is Status.PRESENT
    clock.now += 1
    assert counts(store) == Reading(Status.STALE, Reason.TTL, NOW, NOW, {"clicks": 1})
    clock.now = NOW + 2 * HOUR
    assert counts(store) == Reading(Status.MISSING, Reason.ABSENT)


def test_a_deleted_value_does_not_come_back_by_a_late_write(store: EmbeddedFeatureStore, clock: Clock) -> None:
    late = Write(COUNTS, "ann", {"clicks": 1}, NOW - 10, NOW)
    store.put([late])
    assert store.put([Write(COUNTS, "ann", None, NOW - 5), late]) == [True, False]
    assert counts(store) == Reading(Status.MISSING, Reason.DELETED, NOW - 5, NOW)
    clock.now = NOW + 2 * HOUR
    assert store.sweep([COUNTS]) == 1
    assert store.put([late]) == [False]  # the tombstone is gone, and so is the age at which this could be written
    assert counts(store).reason is Reason.ABSENT


def test_late_and_repeated_events_land_in_their_place_once(store: EmbeddedFeatureStore) -> None:
    for number in (5, 2, 4, 1, 2, 3):
        store.merge([Merge(RECENT, "ann", [row(number, NOW - 10 + number)])])
    reading = recent(store)
    assert [entry[1] for entry in reading.entries or []] == [2, 3, 4, 5]
    assert (reading.status, reading.event_time, reading.created_at) == (Status.PRESENT, NOW - 5, NOW)
    assert reading.entries is not None
    assert reading.entries[-1] == (NOW - 5, 5, "e5", "i")


def test_an_event_id_is_told_once_at_its_first_place(store: EmbeddedFeatureStore) -> None:
    again = row(1, NOW - 1) | {"seq": 7}
    store.merge([Merge(RECENT, "ann", [again, row(1, NOW - 2), row(2, NOW)])])
    assert [entry[:2] for entry in recent(store).entries or []] == [(NOW - 2, 1), (NOW, 2)]


def test_deleting_a_history_forgets_up_to_a_time(store: EmbeddedFeatureStore) -> None:
    store.merge([Merge(RECENT, "ann", [row(n, NOW - 10 + n) for n in (1, 2, 3)])])
    store.put([Write(RECENT, "ann", None, NOW - 8)])
    store.merge([Merge(RECENT, "ann", [row(1, NOW - 9), row(0, NOW - 20)])])
    assert [entry[1] for entry in recent(store).entries or []] == [3]
    store.put([Write(RECENT, "ann", None, NOW - 1)])
    assert recent(store) == Reading(Status.MISSING, Reason.DELETED, NOW - 1, NOW)


def test_old_entries_of_a_history_are_gone_one_by_one(store: EmbeddedFeatureStore, clock: Clock) -> None:
    store.merge([Merge(RECENT, "ann", [row(1, NOW - HOUR), row(2, NOW)])])
    clock.now = NOW + HOUR
    assert [entry[1] for entry in recent(store).entries or []] == [2]
    clock.now += 1
    assert recent(store).status is Status.STALE
    clock.now = NOW + 2 * HOUR
    store.merge([Merge(RECENT, "ann", [row(3, NOW)])])
    assert recent(store) == Reading(Status.MISSING, Reason.ABSENT)
    assert store.sweep([RECENT, COUNTS]) == 1


def test_a_long_tail_is_folded_and_holds_the_same(store: EmbeddedFeatureStore, tmp_path: Path) -> None:
    for number in range(60):
        store.merge([Merge(RECENT, "ann", [row(number, NOW - 100 + number, "x" * 200)])])
    assert [entry[1] for entry in recent(store).entries or []] == [56, 57, 58, 59]
    store.put([Write(RECENT, "ann", None, NOW - 42)])
    assert [entry[1] for entry in recent(store).entries or []] == [59]
    assert store.read([(RECENT, "bob")])[0].reason is Reason.ABSENT


def test_only_keys_without_anything_kept_are_swept(store: EmbeddedFeatureStore, clock: Clock) -> None:
    store.put([Write(COUNTS, f"u{n}", {"clicks": n}, NOW - n * HOUR // 2) for n in range(4)])
    store.put([Write(FOREVER, "ann", {"v": [1, 2, 3]}, 0)])
    clock.now = NOW + HOUR
    assert store.sweep([COUNTS, FOREVER, RECENT]) == 2
    assert [counts(store, f"u{n}").status for n in range(4)] == ["PRESENT", "STALE", "MISSING", "MISSING"]
    np.testing.assert_array_equal((store.read([(FOREVER, "ann")])[0].values or {})["v"], [1, 2, 3])


def test_nothing_of_a_bad_batch_is_written(store: EmbeddedFeatureStore) -> None:
    good = Write(COUNTS, "ann", {"clicks": 1}, NOW)
    bad: list[tuple[Write, str]] = [
        (Write(COUNTS, "ann", {"clicks": "1"}, NOW), "clicks"),
        (Write(COUNTS, "", {"clicks": 1}, NOW), "entity"),
        (Write(COUNTS, "ann", {"clicks": 1}, NOW + 300_000_001), "event_time"),
        (Write(COUNTS, "ann", {"clicks": 1}, NOW, 1.5), "created_at"),  # type: ignore[arg-type]
        (Write(RECENT, "ann", {"item": "i"}, NOW), "view"),
    ]
    for write, name in bad:
        with pytest.raises(InputError, match=rf"\[{name} = "):
            store.put([good, write])
    assert counts(store).reason is Reason.ABSENT


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"time": "now"}, "time"), ({"time": NOW * 2}, "time"), ({"seq": None}, "seq"), ({"seq": 2**63}, "seq"),
        ({"event_id": ""}, "event_id"), ({"event_id": 7}, "event_id"), ({"item": None}, "item"), ({"x": 1}, "values"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_named(store: EmbeddedFeatureStore, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"\[{named} = "):
        store.merge([Merge(RECENT, "ann", [row(1, NOW), row(2, NOW) | changed])])
    with pytest.raises(InputError, match="use put"):
        store.merge([Merge(COUNTS, "ann", [])])
    assert recent(store).reason is Reason.ABSENT


def test_bytes_that_cannot_be_read_are_missing_and_give_way(store: EmbeddedFeatureStore, tmp_path: Path) -> None:
    other = View("counts", "user", (Field("clicks", Kind.STRING),), 1, "team")
    raws = {
        COUNTS.key("old"): b"\x00" + bytes(20),
        COUNTS.key("damaged"): Codec(other).encode({"clicks": "many"}, NOW, NOW),
        RECENT.key("old"): b"\x00" + bytes(40),
        RECENT.key("damaged") + TAIL: EntryCodec(RECENT).tail([(NOW, 1, "e1", "i")], NOW)[:-1],
    }
    store.close()
    with lmdb.open(str(tmp_path / "store")) as environment, environment.begin(write=True) as transaction:
        for key, raw in raws.items():
            transaction.put(key, raw)
    store = EmbeddedFeatureStore(tmp_path / "store", clock=Clock())
    wanted = [(view, entity) for view in (COUNTS, RECENT) for entity in ("old", "damaged")]
    assert [reading.reason for reading in store.read(wanted)] == [Reason.FORMAT, Reason.CORRUPT] * 2
    assert store.put([Write(COUNTS, entity, {"clicks": 1}, NOW - 9) for entity in ("old", "damaged")]) == [True, False]
    store.merge([Merge(RECENT, "old", [row(n, NOW, "x" * 300) for n in range(20)])])
    assert len(store.read([(RECENT, "old")])[0].entries or []) == 4
    store.close()


def test_a_user_is_exported_and_deleted_whole(store: EmbeddedFeatureStore) -> None:
    views = [COUNTS, RECENT, FOREVER]
    store.put([Write(COUNTS, "ann", {"clicks": 1}, NOW), Write(COUNTS, "bob", {"clicks": 2}, NOW)])
    store.merge([Merge(RECENT, "ann", [row(1, NOW)])])
    exported = export_entity(store, views, "ann")
    assert [(name, reading.status) for name, reading in exported.items()] == [
        ("counts:1", "PRESENT"), ("recent:1", "PRESENT"), ("forever:1", "MISSING"),
    ]  # fmt: skip
    delete_entity(store, views, "ann", NOW)
    assert {reading.reason for reading in export_entity(store, views, "ann").values()} == {Reason.DELETED}
    assert counts(store, "bob").status is Status.PRESENT


def test_a_passed_deadline_is_an_answer(store: EmbeddedFeatureStore) -> None:
    store.put([Write(COUNTS, "ann", {"clicks": 1}, NOW)])
    assert store.read([(COUNTS, "ann")], deadline=10)[0].status is Status.PRESENT
    assert store.read([(COUNTS, "ann")] * 3, deadline=-1)[2] == Reading(Status.MISSING, Reason.DEADLINE)


def test_a_full_file_refuses_a_batch_whole(tmp_path: Path, clock: Clock) -> None:
    store = EmbeddedFeatureStore(tmp_path, map_bytes=1 << 16, clock=clock)
    with pytest.raises(UnavailableError, match="larger map_bytes"):
        store.put([Write(COUNTS, f"{n}" * 100, {"clicks": n}, NOW) for n in range(900)])
    assert counts(store, "0" * 100).reason is Reason.ABSENT
    assert store.put([Write(COUNTS, "ann", {"clicks": 1}, NOW)]) == [True]
    store.close()


WRITER = """
import random, sys
from datetime import timedelta
from pathlib import Path
from feature_store.embedded import EmbeddedFeatureStore
from feature_store.fields import Field, Kind
from feature_store.store import Merge, Write, now_micros
from feature_store.views import View

counts = View("counts", "user", (Field("clicks", Kind.INT64),), 1, "team", ttl=timedelta(hours=1))
recent = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", history=100_000)
store = EmbeddedFeatureStore(Path(sys.argv[1]))
base, writer, count = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
times = list(range(count))
random.Random(writer).shuffle(times)
for number in times:
    time = base + number * 100 + writer
    store.put([Write(counts, "ann", {"clicks": time}, time)])
    store.merge([Merge(recent, "ann", [{"time": time, "seq": writer, "event_id": str(time), "item": "i"}])])
    print(time, flush=True)
"""


def start_writer(path: Path, base: int, writer: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(base), str(writer), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


LONG = View("recent", "user", (Field("item", Kind.STRING),), 1, "team", history=100_000)


def test_processes_that_write_shuffled_times_end_with_the_newest(tmp_path: Path) -> None:
    base = now_micros() - 10**9
    writers = [start_writer(tmp_path, base, number, 12) for number in range(3)]
    printed = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 3
    store = EmbeddedFeatureStore(tmp_path)
    newest, history = store.read([(COUNTS, "ann"), (LONG, "ann")])
    assert newest.values == {"clicks": base + 1102}
    assert [entry[0] for entry in history.entries or []] == sorted(printed)
    store.close()


def test_nothing_acknowledged_is_lost_on_kill(tmp_path: Path) -> None:
    base = now_micros() - 10**8
    writer = start_writer(tmp_path, base, 0, 10**5)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.communicate()[0].split("\n")[:-1]]
    store = EmbeddedFeatureStore(tmp_path)
    newest, history = store.read([(COUNTS, "ann"), (LONG, "ann")])
    assert newest.event_time is not None
    assert newest.event_time >= max(acknowledged)
    assert set(acknowledged) <= {entry[0] for entry in history.entries or []}
    store.close()


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "feature_store.md"
    example = page.read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PRESENT ")
    assert "'a1', 'i7', 'click'" in lines[1]
    assert lines[2] == "MISSING absent"
