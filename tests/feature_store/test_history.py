from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.history import EmbeddedHistoryStore, HistoryEvent, Status, load_tables, merge_events
from recsys.records import EVENTS

EVENTS_OF_A_USER = st.lists(
    st.builds(
        lambda number, time, seq: HistoryEvent(f"i{number % 5}", time, seq, f"e{number}", "click", None),
        st.integers(0, 30),
        st.integers(0, 5),
        st.integers(0, 3),
    ),
    max_size=6,
)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["merge", "merge", "delete"]), st.sampled_from(["a", "b"]), EVENTS_OF_A_USER), max_size=10
)


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_any_interleaving_equals_a_naive_oracle(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, list[HistoryEvent]]]
) -> None:
    store = EmbeddedHistoryStore(tmp_path_factory.mktemp("store"), limit=10_000)
    seen: dict[str, list[HistoryEvent]] = {"a": [], "b": []}
    perform: dict[str, Callable[[str, list[HistoryEvent]], object]] = {
        "merge": store.merge,
        "delete": lambda user, _: store.delete(user),
    }
    remember: dict[str, Callable[[str, list[HistoryEvent]], list[HistoryEvent]]] = {
        "merge": lambda user, events: seen[user] + events,
        "delete": lambda _user, _events: [],
    }
    for operation, user, events in operations:
        perform[operation](user, events)
        seen[user] = remember[operation](user, events)
        first: dict[str, HistoryEvent] = {}
        for event in sorted(seen[user], key=lambda e: (e.time, e.seq, e.event_id)):
            first.setdefault(event.event_id, event)
        assert store.get(user, limit=10_000).events == list(first.values())
    store.close()


def click(number: int) -> HistoryEvent:
    return HistoryEvent(f"i{number}", number, 0, f"e{number}", "click", "home")


def test_the_newest_events_stay() -> None:
    assert merge_events([click(n) for n in range(5)], [click(7), click(6)], 3) == [click(4), click(6), click(7)]


def test_an_unknown_user_is_missing(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path)
    assert store.get("nobody").status is Status.MISSING
    store.merge("somebody", [click(1)])
    assert store.get("somebody").status is Status.PRESENT
    assert store.delete("somebody")
    assert not store.delete("somebody")
    store.close()


def test_a_read_is_limited_to_the_newest(tmp_path: Path) -> None:
    store = EmbeddedHistoryStore(tmp_path)
    assert store.merge("u" * 5000, [click(n) for n in range(9)]) == 9
    assert store.merge("u" * 5000, [click(3)]) == 0
    assert store.get("u" * 5000, limit=2).events == [click(7), click(8)]
    store.close()


def _write(path: str, first: int) -> None:
    store = EmbeddedHistoryStore(Path(path))
    for number in range(first, first + 20):
        store.merge("shared", [click(number)])
    store.close()


def test_processes_share_the_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    store = EmbeddedHistoryStore(tmp_path)
    assert len(store.get("shared").events) == 40
    store.close()


def test_tables_load_once(tmp_path: Path) -> None:
    rows = [
        {"event_id": f"e{n}", "user_id": f"u{n % 2}", "item_id": f"i{n}", "time": n, "seq": n, "action": action}
        for n, action in enumerate(["click", "impression", "purchase", "click"])
    ]
    (tmp_path / "events").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=EVENTS), tmp_path / "events" / "part-0.parquet")
    store = EmbeddedHistoryStore(tmp_path / "store")
    assert load_tables(store, tmp_path, ["click", "purchase"], batch_rows=2) == 3
    assert load_tables(store, tmp_path, ["click", "purchase"]) == 0
    assert [event.item_id for event in store.get("u0").events] == ["i0", "i2"]
    store.close()
