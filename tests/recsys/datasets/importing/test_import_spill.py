"""Parting by hash, first of each key, positions per user: against plain Python."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys.datasets.importing.spill import KnownIds, Positions, Spill, first_of_each, hash64

IDS = st.text("abcé", min_size=1, max_size=2)


@given(st.lists(st.tuples(IDS, st.integers(0, 3)), max_size=20), st.integers(1, 5), st.integers(1, 7))
def test_a_key_is_met_in_one_partition_in_the_order_of_arrival(
    rows: list[tuple[str, int]], partitions: int, batch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill = Spill(Path(folder), partitions)
        for start in range(0, len(rows), batch):
            keys, values = zip(*rows[start : start + batch], strict=True)
            spill.add(pa.table({"key": keys, "value": values}), pa.array(keys))
        spill.close()
        found = [
            [row for table in spill.read(partition, 3) for row in table.to_pylist()] for partition in range(partitions)
        ]
    places = [{row["key"] for row in part} for part in found]
    assert sum(len(place) for place in places) == len({key for key, _ in rows})
    for key in {key for key, _ in rows}:
        together = [row["value"] for part in found for row in part if row["key"] == key]
        assert together == [value for other, value in rows if other == key]


@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 2)), max_size=20))
def test_first_of_each(rows: list[tuple[str, str, int]]) -> None:
    keys, users, times = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    arrivals = list(range(len(rows)))
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "user": pa.array(users, pa.string()),
            "time": pa.array(times, pa.int64()),
            "arrival": pa.array(arrivals, pa.int64()),
        }
    )
    best: dict[str, tuple[bytes, int, int]] = {}
    for key, user, when, arrival in zip(keys, users, times, arrivals, strict=True):
        entry = (user.encode(), when, arrival)
        best[key] = min(best.get(key, entry), entry)
    expected = [best[key][2] == arrival for key, arrival in zip(keys, arrivals, strict=True)]
    assert first_of_each(table, "key", ["user", "time", "arrival"]).tolist() == expected


@given(st.lists(st.lists(IDS, max_size=8), max_size=4))
def test_positions(batches: list[list[str]]) -> None:
    positions = Positions()
    counts: Counter[str] = Counter()
    for users in batches:
        expected = []
        for user in users:
            expected.append(counts[user])
            counts[user] += 1
        assert positions.number(pa.array(users, pa.string())).tolist() == expected
    assert positions.counts == dict(counts)


@given(st.lists(st.sets(IDS), max_size=3), st.lists(IDS))
def test_known_ids(parts: list[set[str]], asked: list[str]) -> None:
    known = KnownIds([hash64(pa.array(sorted(part), pa.string())) for part in parts])
    everything = set().union(*parts)
    assert known.holds(pa.array(asked, pa.string())).tolist() == [one in everything for one in asked]


def test_hashes_are_the_same_in_every_process() -> None:
    assert hash64(pa.array(["a", "b", "a"])).tolist() == [
        3405396810240292928,
        8453121595177857668,
        3405396810240292928,
    ]
