from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from recsys.bundle import Bundle, Registry
from recsys.catalog import CatalogFilter
from recsys.catalog.changes import Change, Delete, Expire, Stock, Upsert
from recsys.catalog.log import CatalogLog
from recsys.errors import CorruptionError, UnavailableError
from serving.engine import EngineAnswer, EngineRequest, SlateItem
from serving.ladder.fallback import Fallback, Loaded, load_tables

KNOWN = ["item-11", "item-12", "item-13"]
NOW = 2_000_000
ITEMS = [f"item-{n:02d}" for n in range(48)]


@pytest.fixture
def log(tmp_path: Path) -> CatalogLog:
    return CatalogLog(tmp_path / "catalog_log")


@pytest.fixture
def tables(served_registry: Registry, tmp_path: Path, log: CatalogLog) -> Loaded:
    return load(served_registry, tmp_path, log)


def load(registry: Registry, folder: Path, log: CatalogLog) -> Loaded:
    version = registry.current()
    assert version is not None
    return load_tables(registry, version, markers=folder / "verified", log=log)


def append(log: CatalogLog, *changes: Change) -> None:
    with log.writing() as writer:
        writer.append(changes)


def asked(history: Sequence[str] = (), n: int = 48, **rest: object) -> EngineRequest:
    return EngineRequest(history=history, n=n, time=NOW, **rest)  # type: ignore[arg-type]


def shown(answer: EngineAnswer) -> list[str]:
    return [item.item_id for item in answer.items]


def test_a_history_is_answered_by_its_neighbours_and_nobody_by_what_is_popular(
    tables: Loaded, served_bundle: Bundle
) -> None:
    near = tables.answer(asked(KNOWN, 5), ())
    (item,) = served_bundle.item_ids.lookup(KNOWN[-1:])
    neighbours = served_bundle.item_ids.ids(served_bundle.item_to_item.of(item)[0])
    assert (near.served_by, near.decoder, near.items[0].source) == ("item_to_item", None, "item_to_item")
    assert set(neighbours) & set(shown(near))
    assert not set(KNOWN) & set(shown(near))
    assert near.catalog_version == f"{served_bundle.manifest.version}.0"
    assert tables.answer(asked(scene="home"), ()).served_by == "popular_scene"
    assert tables.answer(asked(scene="nowhere"), ()).served_by == "popular_memory"


def test_kept_items_come_first_as_far_as_they_may_be_shown_now(tables: Loaded, log: CatalogLog) -> None:
    append(log, Delete(item_id="item-31", time=1))
    names = ["item-30", "item-31", "unheard-of", "item-00", "item-32", "item-33"]
    kept = [SlateItem(name, -float(place), "nezha", None) for place, name in enumerate(names)]
    answer = tables.answer(asked(KNOWN, 6, deny=["item-33"]), kept)
    assert (shown(answer)[:2], answer.served_by) == (["item-30", "item-32"], "cached")
    assert [item.source for item in answer.items[:2]] == ["cached", "cached"]
    assert (len(answer.items), answer.truncated, answer.ineligible) == (6, False, 0)
    assert "cached" not in {item.source for item in answer.items[2:]}


def test_what_happened_to_items_is_known_to_every_tier(tables: Loaded, log: CatalogLog) -> None:
    append(
        log,
        Delete(item_id="item-20", time=1),
        Stock(item_id="item-21", time=1, stock=0),
        Expire(item_id="item-22", time=1, until=NOW - 1),
        Upsert(item_id="new-1", time=1, title="New"),
    )
    answer = tables.answer(asked(KNOWN), ())
    assert not {"item-20", "item-21", "item-22"} & set(shown(answer))
    assert "new-1" in shown(answer)
    assert answer.catalog_version.endswith(".4")
    memory = tables.memory.answer(asked(KNOWN))
    assert not {"item-20", "item-21", "item-22", *KNOWN} & set(shown(memory))
    assert (memory.served_by, memory.catalog_version) == ("popular_memory", answer.catalog_version)


LISTED = st.sampled_from([*ITEMS[10:16], "not-listed"])
CHANGES = st.lists(
    st.one_of(
        st.builds(Delete, item_id=LISTED, time=st.just(1)),
        st.builds(Stock, item_id=LISTED, time=st.just(1), stock=st.integers(0, 1)),
        st.builds(Expire, item_id=LISTED, time=st.just(1), until=st.sampled_from([NOW - 1, NOW, NOW + 1])),
        st.builds(
            Upsert, item_id=LISTED.filter(ITEMS.__contains__), time=st.just(1), title=st.just("again"),
            brand=st.sampled_from([None, "Brand 1"]),
        ),
    ),
    max_size=8,
)  # fmt: skip


@given(goes=st.lists(st.tuples(CHANGES, st.booleans()), max_size=4))
def test_the_memory_follows_the_log_as_the_tables_do(
    tmp_path_factory: pytest.TempPathFactory, served_registry: Registry, goes: list[tuple[list[Change], bool]]
) -> None:
    folder = tmp_path_factory.mktemp("followed")
    log = CatalogLog(folder / "catalog_log", flush=lambda _: None)
    tables = load(served_registry, folder, log)
    request = asked(conditions=CatalogFilter(brands=("Brand 1",)))
    passing: dict[bool, Callable[[], None]] = {True: tables.follow, False: lambda: None}
    for changes, followed in goes:
        append(log, *changes)
        passing[followed]()
        fresh = load(served_registry, folder, log)
        for each in (asked(), request):
            answer = tables.memory.answer(each)
            assert (answer.items, answer.catalog_version) == (
                fresh.memory.answer(each).items,
                f"{answer.bundle_version}.{log.end}",
            )
            assert set(shown(answer)) == set(shown(fresh.answer(each, ())))


def test_the_memory_follows_every_item_of_its_list(tables: Loaded, log: CatalogLog) -> None:
    append(log, *(Upsert(item_id=item, time=1, title="again") for item in ITEMS))
    assert {(item.item_id, item.title) for item in tables.memory.answer(asked()).items} == {
        (item, "again") for item in ITEMS
    }
    append(log, *(Delete(item_id=item, time=1) for item in ITEMS))
    assert shown(tables.memory.answer(asked())) == []


def test_what_cannot_be_read_of_the_log_takes_nothing_from_the_memory(tables: Loaded, log: CatalogLog) -> None:
    every = shown(tables.memory.answer(asked()))
    append(log, *(Delete(item_id=item, time=1) for item in every[:3]))
    (segment,) = log.directory.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1  # of the third record
    append(log, Delete(item_id=every[3], time=1))
    written = segment.read_bytes()
    segment.write_bytes(bytes(data) + written[len(data) :])
    for _ in range(2):
        answer = tables.memory.answer(asked())
        assert (shown(answer), answer.catalog_version[-2:]) == (every[2:], ".2")
    segment.write_bytes(written)
    assert shown(tables.memory.answer(asked())) == every[4:]
    segment.unlink()
    (log.directory / "end").unlink()
    assert shown(tables.memory.answer(asked())) == every[4:]


def test_whoever_comes_late_sets_nothing_back(tables: Loaded, log: CatalogLog, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tables.memory
    every = shown(memory.answer(asked()))
    append(log, Delete(item_id=every[0], time=1))
    assert shown(memory.answer(asked())) == every[1:]
    memory.refresh(tables.recommender.items)  # which have not followed
    assert memory.sequence == 1
    append(log, *(Delete(item_id=item, time=1) for item in every[1:9]))
    read = memory._log.read

    def slowly(start: int, end: int) -> Iterator[tuple[int, Change]]:
        for number, change in read(start, end):
            tables.recommender.items.follow()  # the tables' thread
            memory.refresh(tables.recommender.items)
            yield number, change

    monkeypatch.setattr("serving.ladder.memory._AT_ONCE", 2)
    monkeypatch.setattr(memory._log, "read", slowly)
    assert shown(memory.answer(asked())) == every[9:]
    assert memory.sequence == 9
    monkeypatch.undo()
    shutil.rmtree(log.directory)
    assert shown(memory.answer(asked())) == every[9:]


def test_whatever_lies_in_the_log_the_memory_answers(
    tables: Loaded, log: CatalogLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tables.memory
    every = shown(memory.answer(asked()))
    append(log, Delete(item_id=every[0], time=1))
    (segment,) = log.directory.glob("*.log")
    segment.with_suffix(".damaged.log").write_bytes(b"x")  # no segment
    assert shown(memory.answer(asked())) == every[1:]
    append(log, Delete(item_id=every[1], time=1))
    monkeypatch.setattr(memory._log, "read", lambda *_: next(iter(())))
    with capture_logs() as lines:
        for _ in range(3):
            assert shown(memory.answer(asked())) == every[1:]
    assert memory.trouble == "StopIteration"  # which has no words of its own
    assert [line["event"] for line in lines] == ["memory_not_followed"]
    tables.follow()  # the tables' thread helps out at once
    assert shown(memory.answer(asked())) == every[2:]
    monkeypatch.undo()
    append(log, Delete(item_id=every[2], time=1))
    assert (shown(memory.answer(asked())), memory.trouble) == (every[3:], "")


def test_a_few_changes_are_left_to_the_memory_itself(
    tables: Loaded, log: CatalogLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.ladder.fallback._FEW", 2)
    append(log, *(Delete(item_id=item, time=1) for item in ITEMS[10:12]))
    tables.follow()
    assert tables.memory.sequence == 0
    append(log, Delete(item_id=ITEMS[12], time=1))
    tables.follow()
    assert tables.memory.sequence == 3


def test_one_answer_waits_for_a_part_of_a_long_log(
    tables: Loaded, log: CatalogLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.ladder.memory._AT_ONCE", 2)
    every = shown(tables.memory.answer(asked()))
    append(log, *(Delete(item_id=item, time=1) for item in every[:3]))
    assert [shown(tables.memory.answer(asked())) for _ in range(3)] == [every[2:], every[3:], every[3:]]


def test_a_start_behind_the_log_knows_it_at_once(served_registry: Registry, tmp_path: Path, log: CatalogLog) -> None:
    append(log, *(Delete(item_id=item, time=1) for item in ITEMS[10:40]))
    tables = load(served_registry, tmp_path, log)
    assert not set(ITEMS[10:40]) & {*shown(tables.memory.answer(asked())), *shown(tables.answer(asked(), ()))}


IDS = st.sampled_from([*ITEMS, "unheard-of"])
REQUESTS = st.builds(
    EngineRequest,
    history=st.lists(IDS, max_size=8),
    n=st.integers(1, 60),
    time=st.just(NOW),
    scene=st.sampled_from([None, "home", "nowhere"]),
    conditions=st.builds(
        CatalogFilter,
        brands=st.sampled_from([(), ("Brand 1", "Brand 2")]),
        price_min_micros=st.sampled_from([None, 10_000_000]),
        price_max_micros=st.sampled_from([None, 40_000_000]),
    ),
    allow=st.none() | st.lists(IDS, max_size=30),
    deny=st.lists(IDS, max_size=8),
    exclude_seen=st.booleans(),
)
GONE = {f"item-{n:02d}" for n in (20, 21)}


def eligible(bundle: Bundle, request: EngineRequest) -> set[str]:
    """The definition, row by row."""
    rules, refused = request.conditions, {*request.deny, *(request.history if request.exclude_seen else ()), *GONE}
    low, high = rules.price_min_micros, rules.price_max_micros
    return {
        row["item_id"]
        for row in bundle.items.to_pylist()
        if row["item_id"] not in refused
        and (request.allow is None or row["item_id"] in request.allow)
        and (row["available_from"] or 0) <= NOW < (row["available_until"] or NOW + 1)
        and (not rules.brands or row["brand"] in rules.brands)
        and (low is None or (row["price_micros"] or -1) >= low)
        and (high is None or (row["price_micros"] is not None and row["price_micros"] <= high))
    }


@pytest.fixture
def thinned(tables: Loaded, log: CatalogLog) -> Loaded:
    """Some items are gone."""
    append(log, *(Delete(item_id=item, time=1) for item in sorted(GONE)))
    return tables


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUESTS, kept=st.lists(IDS, max_size=20, unique=True))
def test_every_tier_shows_what_may_be_shown_and_as_much_as_there_is(
    thinned: Loaded, served_bundle: Bundle, request: EngineRequest, kept: list[str]
) -> None:
    may = eligible(served_bundle, request)
    items = [SlateItem(name, 0.0, "nezha", None) for name in kept]
    for answer in (thinned.answer(request, items), thinned.memory.answer(request)):
        assert set(shown(answer)) <= may
        assert len(shown(answer)) == len(set(shown(answer))) == min(request.n, len(may))
        assert answer.truncated == (len(may) < request.n)
        assert answer.ineligible == 0


def test_a_damaged_table_is_refused_and_weights_are_not_looked_at(
    served_registry: Registry, tmp_path: Path, log: CatalogLog
) -> None:
    root = tmp_path / "registry"
    shutil.copytree(served_registry.root, root)
    registry = Registry(root)
    folder = registry.path(str(registry.current()))
    spoil(folder / "model" / "weights.safetensors")
    assert load(registry, tmp_path, log).memory.answer(asked()).items
    spoil(folder / "popularity" / "items.npy")
    with pytest.raises(CorruptionError, match=r"popularity/items\.npy"):
        load(registry, tmp_path, log)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def fallback(tables: Loaded) -> Iterator[Fallback]:
    fallback = Fallback(minimum=0.002)
    fallback.swap(tables)
    yield fallback
    fallback.close()


def answered(fallback: Fallback, seconds: float) -> EngineAnswer:
    return asyncio.run(fallback.answer(asked(KNOWN, 5), until=time.monotonic() + seconds))


def test_with_time_the_tables_answer_and_without_it_the_memory(fallback: Fallback) -> None:
    assert answered(fallback, 60).served_by == "item_to_item"
    assert answered(fallback, 0.001).served_by == "popular_memory"
    assert answered(fallback, -5).served_by == "popular_memory"


def test_a_thread_that_hangs_or_fails_is_not_waited_for(
    fallback: Fallback, tables: Loaded, log: CatalogLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(tables.recommender, "without_model", lambda *_: hanging.wait(60))
    try:
        assert [answered(fallback, 0.05).served_by for _ in range(3)] == ["popular_memory"] * 3
    finally:
        hanging.set()
    monkeypatch.setattr(tables.recommender, "without_model", lambda *_: 1 // 0)
    assert answered(fallback, 60).served_by == "popular_memory"


def test_before_the_first_bundle_there_is_no_answer() -> None:
    fallback = Fallback(minimum=0.0)
    with pytest.raises(UnavailableError, match="no bundle"):
        answered(fallback, 1)
    fallback.close()


def test_neither_torch_nor_compiled_loops_are_loaded(served_registry: Registry, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from recsys.bundle.registry import Registry
from recsys.catalog.log import CatalogLog
from serving.engine import EngineRequest
from serving.ladder.fallback import load_tables
import serving.app
registry = Registry(Path({str(served_registry.root)!r}))
log = CatalogLog(Path({str(tmp_path / "log")!r}))
tables = load_tables(registry, registry.current(), markers=Path({str(tmp_path / "verified")!r}), log=log)
answer = tables.answer(EngineRequest(history={KNOWN!r}, n=5, time={NOW}), ())
print(answer.served_by, len(answer.items), [name for name in ("torch", "numba", "faiss") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "item_to_item 5 []", done.stderr
