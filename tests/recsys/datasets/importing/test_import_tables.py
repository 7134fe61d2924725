"""Whole imports against a plain-Python account of the rules, whatever the limits."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.importing import Limits, import_dataset
from recsys.datasets.importing.assembly import Assembly
from recsys.datasets.importing.chunks import Reading
from recsys.datasets.importing.generic import open_log
from recsys.datasets.importing.sink import Sink
from recsys.event_log import EventLog, Exposure, ExposureLog
from recsys.records import TABLES
from recsys.storage import read_parquet_directory

if TYPE_CHECKING:
    from tests.recsys.datasets.importing.conftest import Workplace

TINY = Limits(block_bytes=20, partition_bytes=40, row_group_rows=3, max_partitions=4)
EVENT = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from([None, *"abcdefgh"]),
        "user_id": st.sampled_from(["u1", "u2", "u3"]),
        "item_id": st.sampled_from([None, "i1", "i2", "i3"]),
        "time": st.sampled_from([1, 2, 2, 3, "soon"]),
    }
)


Row = tuple[str, str, str, int, int]
COLUMNS = ["event_id", "user_id", "item_id", "time", "seq"]


def fault(event: dict[str, Any], known: set[str]) -> str | None:
    """Why an event is rejected, by the first rule that it breaks."""
    broken = {
        "missing_field": event["item_id"] is None,
        "bad_time": event["time"] == "soon",
        "unknown_item": event["item_id"] not in known,
    }
    return next((reason for reason, it_is in broken.items() if it_is), None)


def account(events: list[dict[str, Any]], known: set[str]) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows to expect, and (line, reason) of the others."""
    faults = {line: fault(event, known) for line, event in enumerate(events, start=1)}
    rejected = [(line, reason) for line, reason in faults.items() if reason is not None]
    good = {line: events[line - 1] for line, reason in faults.items() if reason is None}
    ids = {line: event["event_id"] or f"log.jsonl:{line}" for line, event in good.items()}
    winners: dict[str, tuple[str, int, int]] = {}
    for line, event in good.items():
        entry = (event["user_id"], event["time"], line)
        winners[ids[line]] = min(winners.get(ids[line], entry), entry)
    kept = sorted(line for _, _, line in winners.values())
    rejected += [(line, "duplicate_event_id") for line in good.keys() - set(kept)]
    counts: Counter[str] = Counter()
    rows: list[Row] = []
    for line in kept:
        user = good[line]["user_id"]
        rows.append((ids[line], user, good[line]["item_id"], good[line]["time"] * 10**6, counts[user]))
        counts[user] += 1
    return sorted(rows), sorted(rejected)


def run(source: Path, out: Path, limits: Limits) -> Sink:
    """An import without the flush to the device, which would take all the time of the test."""
    sink = Sink(out, limits.row_group_rows)
    dataset = open_log(source, None)
    Assembly(dataset, sink, out / "scratch", Reading(limits), lambda _done, _of: None).run()
    sink.close()
    return sink


@pytest.mark.parametrize(
    ("file", "content", "catalogue"),
    [("notes.txt", "", []), ("items.csv", "item_id,title\ni1,One\ni2,\ni2,again\n", ["i1", "i2"])],
)
@settings(max_examples=30)
@given(events=st.lists(EVENT, min_size=1, max_size=14), limits=st.sampled_from([TINY, Limits()]))
def test_every_row_is_accounted_for(
    file: str, content: str, catalogue: list[str], events: list[dict[str, Any]], limits: Limits
) -> None:
    rows, rejected = account(events, set(catalogue or ["i1", "i2", "i3"]))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "log", Path(folder) / "out"
        source.mkdir()
        (source / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
        (source / file).write_text(content)
        sink = run(source, out, limits)
        tables = {name: read_parquet_directory(out / name).to_pylist() for name in TABLES}
    assert sorted(tuple(row[name] for name in COLUMNS) for row in tables["events"]) == rows
    left = [row for row in tables["rejected"] if row["table"] == "events"]
    assert sorted((row["line"], row["reason"]) for row in left) == rejected
    counts = sink.counts()
    assert (counts["events"].read, counts["events"].written) == (len(events), len(rows))
    assert sum(sink.reasons.values()) == len(tables["rejected"])
    per_user = Counter(user for _, user, _, _, _ in rows)
    assert sorted(row["user_id"] for row in tables["users"]) == sorted(per_user)
    assert sink.notes["users_with_one_event"] == list(per_user.values()).count(1)
    items = sorted({*catalogue, *(item for _, _, item, _, _ in rows)})
    assert sorted(row["item_id"] for row in tables["items"]) == items
    assert sink.notes["items_without_text"] == sum(row["title"] is None for row in tables["items"])


def test_a_source_without_times_has_time_equal_to_seq(place: Workplace) -> None:
    report = place.take(place.write("log.csv", "user_id,item_id\nb,1\na,2\nb,3\n"), limits=TINY)
    rows = [(row["user_id"], row["item_id"], row["time"], row["seq"]) for row in place.rows("events")]
    assert sorted(rows) == [("a", "2", 0, 0), ("b", "1", 0, 0), ("b", "3", 1, 1)]
    assert report.manifest.time_is_order
    assert report.time_range is None


def test_the_obvious_columns_need_no_mapping(place: Workplace) -> None:
    place.write("log/day1.csv", "userId,Item,timestamp,event,scene,value,device\nu,1,1700000000,Buy,home,9.5,ios\n")
    place.write("log/day2.csv.gz", b"")
    place.write("log/day3.tsv", "scene\tuserId\tItem\ttimestamp\tevent\tvalue\ncart\tu\t2\t1700000001\tclick\t\n")
    report = place.take(place.folder / "log")
    first, second = place.rows("events")
    assert first == {
        "event_id": "day1.csv:2", "user_id": "u", "item_id": "1", "time": 1_700_000_000_000_000, "seq": 0,
        "scene": "home", "action": "buy", "value_micros": 9_500_000,
    }  # fmt: skip
    assert (second["event_id"], second["seq"], second["scene"]) == ("day3.tsv:2", 1, "cart")
    assert report.ignored_columns == ("device",)
    assert report.columns["item_id"] == "Item"
    assert report.manifest.notes["items_derived_from_events"] == 2
    assert sorted(report.manifest.sources) == ["day1.csv", "day2.csv.gz", "day3.tsv"]


def test_a_mapping_says_what_names_do_not(place: Workplace) -> None:
    place.write("products.csv", "sku;label;path;cents\n1;One;A/B;1999\n2;;;\n")
    place.write("people.jsonl", '{"user": "u", "created_at": "2020-01-01"}\n{"user": "v"}\n{"user": "v"}\n')
    mapping = place.write_mapping(
        {
            "events": {
                "columns": {"user_id": "who", "item_id": "sku", "time": "at", "action": None},
                "constants": {"action": "purchase", "scene": "shop"},
                "attributes": ["device", "stars"],
                "time_format": "%d/%m/%Y %H:%M",
            },
            "items": {
                "path": "products.csv",
                "columns": {"item_id": "sku", "title": "label", "category_path": "path", "price_micros": "cents"},
                "money_unit": "minor",
                "list_separator": "/",
                "delimiter": ";",
            },
            "users": {"path": "people.jsonl"},
        }
    )
    log = "who,sku,at,action,device,stars\nu,1,02/01/1970 00:00,x,ios,\nw,2,02/01/1970 00:01,x,,5\n"
    report = place.take(place.write("log.csv", log), mapping=mapping)
    events = place.rows("events")
    assert [(row["time"], row["action"], row["scene"], row["attributes"]) for row in events] == [
        (86_400_000_000, "purchase", "shop", [("device", "ios")]),
        (86_460_000_000, "purchase", "shop", [("stars", "5")]),
    ]
    assert place.rows("items") == [
        {"item_id": "1", "title": "One", "category_path": ["A", "B"], "price_micros": 19_990_000},
        {"item_id": "2"},
    ]
    assert place.rows("users") == [
        {"user_id": "u", "created_at": 1_577_836_800_000_000},
        {"user_id": "v"},
        {"user_id": "w"},
    ]
    assert report.manifest.notes == {
        "items_without_text": 1, "events_without_event_id": 2, "users_with_one_event": 2,
        "users_without_events": 1, "ignored_columns": 1,
    }  # fmt: skip
    assert report.manifest.reasons == {"duplicate_user_id": 1}


def test_parquet_keeps_its_types_and_our_own_tables_can_be_read_again(place: Workplace) -> None:
    table = pa.table(
        {
            "user_id": pa.array([1, 2], pa.uint32()),
            "item_id": pa.array(["x", "y"]).dictionary_encode(),
            "time": pa.array([10**12, 10**12 + 1], pa.timestamp("ms")),
            "attributes": pa.array([[("a", "1")], None], pa.map_(pa.string(), pa.string())),
        }
    )
    pq.write_table(table, place.folder / "log.parquet")
    place.take(place.folder / "log.parquet")
    first = place.rows("events")
    assert [row["time"] for row in first] == [10**15, 10**15 + 1_000]
    assert first[0]["attributes"] == [("a", "1")]
    import_dataset("parquet", place.out / "events", place.folder / "again")
    assert (
        read_parquet_directory(place.folder / "again" / "events").to_pylist()
        == read_parquet_directory(place.out / "events").to_pylist()
    )


def test_the_event_log_is_read_back(place: Workplace) -> None:
    log = EventLog(place.folder / "events", segment_bytes=1_000)
    base = {"scene": "home", "action": "click", "position": 3, "attributes": {"k": "v"}}
    sent = [
        {"event_id": f"e{n}", "user_id": f"u{n % 3}", "item_id": f"i{n % 5}", "time": 1_000 - n, **base}
        for n in range(40)
    ]
    log.append(sent)
    log.close()
    place.write("shop/items.jsonl", "\n".join(json.dumps({"item_id": f"i{n}", "title": "T"}) for n in range(4)))
    mapping = place.write_mapping({"items": {"path": "shop"}})
    report = place.take(place.folder / "events", "eventlog", mapping, TINY)
    known = [event for event in sent if event["item_id"] != "i4"]
    rows = {row["event_id"]: row for row in place.rows("events")}
    assert sorted(rows) == sorted(str(event["event_id"]) for event in known)
    assert {name: rows["e1"][name] for name in ("time", "position", "seq")} == {
        "time": 999, "position": 3, "seq": 0,
    }  # fmt: skip
    assert rows["e1"]["created_at"] > 10**15
    assert rows["e1"]["attributes"] == [("k", "v")]
    assert [row["seq"] for row in rows.values() if row["user_id"] == "u0"] == list(range(11))
    assert report.manifest.reasons == {"unknown_item": 8}
    assert report.items == 4


@pytest.mark.parametrize("depth", ["", "0/"])
def test_the_event_logs_of_all_workers_are_read_as_one(place: Workplace, depth: str) -> None:
    state = place.folder / "state"
    for number, folder in enumerate(("events", "worker-0/events", "worker-1/events")):  # the first was alone once
        log = EventLog(state / depth / folder)
        rows = [
            {"event_id": f"e{n}", "user_id": "ann", "item_id": f"i{n}", "time": 10 * n, "action": "click"}
            for n in range(2 * number, 2 * number + 3)  # each begins with the last of the one before
        ]
        log.append(rows)
        log.close()
    report = place.take(state, "eventlog")
    written = place.rows("events")
    assert [(row["event_id"], row["seq"]) for row in written] == [(f"e{n}", n) for n in range(7)]
    assert report.manifest.reasons == {"duplicate_event_id": 2}


def test_the_exposure_log_is_read_back_as_impressions(place: Workplace) -> None:
    log = ExposureLog(place.folder / "exposures", segment_bytes=500)
    answer = Exposure(
        request_id="r1",
        user_id="ann",
        time=1_700_000_000_000_000,
        scene="home",
        items=["a", "b"],
        positions=[0, 1],
        scores=[-1.5, -2.0],
        sources=["nezha", "popular_scene"],
        propensities=[1.0, 0.25],
        served_by="nezha",
        decoder="nezha",
        bundle_version="v1",
        catalog_version="v1.0",
        arms={},
    )
    anonymous = msgspec.structs.replace(answer, request_id="r2", user_id=None)
    log.append([answer, anonymous, answer])
    log.close()
    report = place.take(place.folder / "exposures", "exposurelog")
    assert report.manifest.reasons == {"missing_field": 2, "duplicate_event_id": 2}
    assert [line for line, reason, _ in place.rejected() if reason == "missing_field"] == [2, 2]
    first, second = place.rows("events")
    assert (first["event_id"], first["action"], first["request_id"], first["position"]) == (
        "r1:0", "impression", "r1", 0,
    )  # fmt: skip
    assert (second["item_id"], second["seq"], second["created_at"]) == ("b", 1, answer.time)
    assert dict(second["attributes"]) == {
        "propensity": "0.25",
        "source": "popular_scene",
        "score": "-2.0",
        "served_by": "nezha",
        "decoder": "nezha",
        "bundle_version": "v1",
        "catalog_version": "v1.0",
    }


def test_progress_ends_where_the_source_ends(place: Workplace) -> None:
    source = place.write("log.csv", "user_id,item_id\n" + "u,1\n" * 50)
    told: list[tuple[str, int, int]] = []
    import_dataset("csv", source, place.out, limits=TINY, progress=lambda *step: told.append(step))
    size = source.stat().st_size
    assert told[0] == ("read", 20, size)
    assert ("read", size, size) in told
    assert told[-1] == ("write", 4, 4)
