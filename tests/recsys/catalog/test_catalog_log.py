from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.catalog.changes import (
    Change,
    Delete,
    Encoded,
    Expire,
    Stock,
    Upsert,
    check_change,
    decode_change,
    encode_change,
)
from recsys.catalog.log import CatalogLog
from recsys.errors import CorruptionError, DataError, InputError, UnavailableError
from recsys.event_log.segments import frame, segment_path

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
numbers = st.integers(0, 10**15)
upserts = st.builds(
    Upsert,
    item_id=words,
    time=numbers,
    title=st.none() | words,
    category_path=st.lists(words, max_size=3).map(tuple),
    brand=st.none() | words,
    price_micros=st.none() | numbers,
    text=st.none() | words,
    attributes=st.dictionaries(words, words, max_size=3),
    available_from=st.none() | numbers,
    available_until=st.none() | numbers,
    stock=st.none() | numbers,
    encoded=st.none()
    | st.builds(Encoded, tokenizer=words, codes=st.lists(st.integers(0, 9)).map(tuple), text=st.binary(max_size=9)),
)
changes = (
    upserts
    | st.builds(Delete, item_id=words, time=numbers)
    | st.builds(Expire, item_id=words, time=numbers, until=numbers)
    | st.builds(Stock, item_id=words, time=numbers, stock=numbers)
)


def deletions(first: int, count: int) -> list[Change]:
    return [Delete(item_id=f"item-{n}", time=n) for n in range(first, first + count)]


def append(log: CatalogLog, *new: Change) -> range:
    with log.writing() as writer:
        return writer.append(new)


def read(log: CatalogLog, start: int = 0) -> list[Change]:
    return [change for _, change in log.read(start, log.end)]


@given(change=changes)
def test_what_is_written_is_read(change: Change) -> None:
    assert decode_change(encode_change(change)) == change


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("item_id", ""),
        ("item_id", "a\0"),
        ("item_id", "é" * 129),
        ("item_id", "\ud800"),
        ("time", -1),
        ("title", "x" * 1_001),
        ("title", "\udc80"),
        ("text", "x" * 20_001),
        ("brand", "x" * 257),
        ("category_path", ("x",) * 17),
        ("category_path", ("x" * 257,)),
        ("attributes", {str(n): "" for n in range(65)}),
        ("attributes", {"x" * 65: ""}),
        ("attributes", {"x": "y" * 257}),
        ("price_micros", -1),
        ("price_micros", 10**18 + 1),
        ("available_from", -1),
        ("available_until", 10**17 + 1),
        ("stock", -1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    values: dict[str, Any] = {"item_id": "a", "time": 0} | {field: value}
    with pytest.raises(InputError) as caught:
        check_change(Upsert(**values))
    assert caught.value.field == field


@pytest.mark.parametrize("change", [Expire(item_id="a", time=0, until=-1), Stock(item_id="a", time=0, stock=-1)])
def test_other_records_are_looked_at_too(change: Change, tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    with pytest.raises(InputError), log.writing() as writer:
        writer.append([Delete(item_id="b", time=0), change])
    assert log.end == 0
    assert append(log, Delete(item_id="b", time=0)) == range(1)


def test_a_reader_that_goes_on_does_not_begin_anew(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    append(log, *deletions(0, 10))
    assert [change for _, change in log.read(0, 4)] == deletions(0, 4)
    segment = segment_path(log.directory, 0)
    data = bytearray(segment.read_bytes())
    data[0] ^= 1  # where it was, and where nobody need look again
    segment.write_bytes(data)
    assert (list(log.read(4, 4)), read(log, 4)) == ([], deletions(4, 6))
    with pytest.raises(CorruptionError):
        read(log)


def test_readers_follow_several_writers(tmp_path: Path) -> None:
    one, two = (CatalogLog(tmp_path / "log", segment_bytes=200) for _ in range(2))
    assert (one.end, read(one)) == (0, [])
    assert append(one, *deletions(0, 3)) == range(3)
    assert append(two, *deletions(3, 30)) == range(3, 33)
    assert append(one, *deletions(33, 1)) == range(33, 34)
    assert read(one) == read(two) == read(CatalogLog(tmp_path / "log")) == deletions(0, 34)
    assert read(two, 30) == deletions(30, 4)
    assert len(list((tmp_path / "log").glob("*.log"))) > 1


def test_what_is_not_acknowledged_is_not_seen(tmp_path: Path) -> None:
    """A killed writer has left a whole record and half of another; the next one makes the whole one known."""
    log = CatalogLog(tmp_path / "log")
    append(log, *deletions(0, 2))
    with segment_path(tmp_path / "log", 0).open("ab") as file:
        file.write(frame(encode_change(deletions(2, 1)[0])) + frame(encode_change(deletions(3, 1)[0]))[:-1])
    assert read(log) == deletions(0, 2)
    log.settle()
    assert read(log) == deletions(0, 3)
    assert append(log, *deletions(3, 1)) == range(3, 4)
    assert read(log) == deletions(0, 4)


def test_the_end_is_found_again(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    log.settle()
    assert not (tmp_path / "log").exists()
    append(log, *deletions(0, 5))
    (tmp_path / "log" / "end").unlink()
    assert log.end == 0
    log.settle()
    assert read(log) == deletions(0, 5)


def test_an_acknowledged_record_that_is_damaged_at_the_end_is_not_taken_for_a_cut_off_one(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    append(log, *deletions(0, 3))
    path = segment_path(tmp_path / "log", 0)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptionError, match="ends at 2, and 3 records were acknowledged"):
        read(log)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="ends at 2, and 3 records were acknowledged"):
            append(log, *deletions(3, 1))
    with pytest.raises(CorruptionError, match="ends at 2"):
        log.settle()
    (tmp_path / "log" / "end").unlink()
    assert append(log, *deletions(3, 1)) == range(2, 3)
    assert read(log) == [*deletions(0, 2), *deletions(3, 1)]


def fails(number: int) -> Callable[[int], None]:
    def flush(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return flush


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    append(log, *deletions(0, 1))
    calls = [fails(errno.EIO), os.fsync]  # opening the log flushes once

    def flush(file: int) -> None:
        calls.pop()(file)

    broken = CatalogLog(tmp_path / "log", flush=flush)
    with pytest.raises(UnavailableError, match="could not be written"):
        append(broken, *deletions(1, 1))
    assert read(log) == read(broken) == deletions(0, 1)
    with pytest.raises(UnavailableError, match="flush"):
        append(broken, *deletions(1, 1))
    broken.settle()  # a process that may not write any more can still load bundles
    assert append(log, *deletions(1, 1)) == range(1, 2)


def test_a_new_log_outlives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory's own entry is flushed too, before the first change is answered."""
    flushed, flush = [], os.fsync

    def fsync(file: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{file}").readlink())
        flush(file)

    monkeypatch.setattr(os, "fsync", fsync)
    append(CatalogLog(tmp_path / "log"), *deletions(0, 1))
    assert tmp_path in flushed


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be written"):
        append(CatalogLog(tmp_path / "file" / "log"), *deletions(0, 1))


def test_another_writer_is_waited_for_in_vain(tmp_path: Path) -> None:
    log, other = CatalogLog(tmp_path / "log"), CatalogLog(tmp_path / "log", patience=0.01)
    with log.writing(), pytest.raises(UnavailableError, match="another process"):
        append(other, *deletions(0, 1))
    assert append(other, *deletions(0, 1)) == range(1)


def test_a_log_of_another_registry_is_refused(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log", segment_bytes=200)
    for n in range(20):
        append(log, *deletions(n, 1))
    with pytest.raises(DataError, match="ends at 20"):
        list(log.read(21, 20))
    for path in sorted((tmp_path / "log").glob("*.log"))[:-1]:
        path.unlink()
    with pytest.raises(DataError, match="no longer holds"):
        list(log.read(0, 20))


def test_a_record_that_is_none(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    append(log, *deletions(0, 1))
    with segment_path(tmp_path / "log", 0).open("ab") as file:
        file.write(frame(b"\x81\xa1x\x01"))
    log.settle()
    with pytest.raises(CorruptionError, match="no change of an item"):
        read(log)


def _write(directory: Path, name: str, count: int) -> None:
    log = CatalogLog(directory, segment_bytes=2_000, patience=60)
    for n in range(count):
        append(log, Delete(item_id=f"{name}-{n}", time=n))


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "log", name, 60)) for name in "abc"]
    log = CatalogLog(tmp_path / "log")
    for writer in writers:
        writer.start()
    seen: list[str] = []
    while any(writer.is_alive() for writer in writers):
        seen += [change.item_id for _, change in log.read(len(seen), log.end)]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    seen += [change.item_id for _, change in log.read(len(seen), log.end)]
    assert sorted(seen) == sorted(f"{name}-{n}" for name in "abc" for n in range(60))
    assert [item for item in seen if item.startswith("b")] == [f"b-{n}" for n in range(60)]
