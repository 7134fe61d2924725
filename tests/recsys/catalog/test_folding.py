"""Folded and then continued, the log leads where the whole log leads: against a replay record by record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalog.changes import Change, Delete, Encoded, Expire, Stock, Upsert
from recsys.catalog.folding import Folded, Numbered, fold, read_folded, write_folded
from recsys.catalog.live_rows import ItemRow
from recsys.errors import CorruptionError, WindfireError
from recsys.event_log.segments import frame

ids = st.sampled_from(["old-0", "old-1", "new-0", "new-1", "new-2"])
titles = st.sampled_from([None, "red", "blue", "?!"])


def encoding(title: str | None, tokenizer: str | None, codes: tuple[int, ...]) -> Encoded | None:
    """As a worker writes it: the vector is that of the words."""
    return None if tokenizer is None else Encoded(tokenizer=tokenizer, codes=codes, text=repr(title).encode())


upserts = st.tuples(
    ids,
    titles,
    st.sampled_from([None, "mine", "other"]),
    st.sampled_from([(), (1,), (2,), (-1,)]),  # -1: no code of any tokenizer
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 3),
).map(
    lambda drawn: Upsert(
        item_id=drawn[0],
        time=0,
        title=drawn[1],
        encoded=encoding(drawn[1], drawn[2], drawn[3]),
        stock=drawn[4],
        available_until=drawn[5],
    )
)
changes = st.lists(
    upserts
    | st.builds(Delete, item_id=ids, time=st.just(0))
    | st.builds(Expire, item_id=ids, time=st.just(0), until=st.integers(0, 5))
    | st.builds(Stock, item_id=ids, time=st.just(0), stock=st.integers(0, 2)),
    max_size=30,
)


@dataclass
class Replay:
    """What a bundle with two items knows, record by record."""

    tokenizer: str
    rows: dict[str, ItemRow] = field(default_factory=lambda: {f"old-{n}": ItemRow(f"old-{n}") for n in range(2)})
    codes: dict[str, object] = field(default_factory=dict)  # of new items, in the order of their places
    vectors: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, str | None] = field(default_factory=lambda: {f"old-{n}": None for n in range(2)})  # of the vectors

    def read(self, change: Upsert) -> bytes:
        """The vector of the words; what stands in the record is the same."""
        stored = change.encoded
        if stored is not None and stored.tokenizer == self.tokenizer:
            return stored.text
        if change.title is None or not change.title.isalnum():
            raise CorruptionError("no words")
        return repr(change.title).encode()

    def place(self, change: Upsert) -> None:
        vector, stored = self.read(change), change.encoded
        if stored is not None and stored.tokenizer == self.tokenizer and stored.codes:
            if stored.codes == (-1,):
                raise CorruptionError("no code of this tokenizer")
            self.codes[change.item_id] = stored.codes
        else:
            self.codes[change.item_id] = vector, list(self.codes.values())  # what was given before is taken
        self.vectors[change.item_id], self.told[change.item_id] = vector, change.title
        self.rows[change.item_id] = ItemRow(change.item_id).after(change)

    def change(self, change: Change) -> None:
        before = self.rows.get(change.item_id)
        if before is not None:
            self.rows[change.item_id] = before.after(change)
            if isinstance(change, Upsert) and change.title != self.told[change.item_id]:
                self.vectors[change.item_id] = self.read(change)
                self.told[change.item_id] = change.title
        elif isinstance(change, Upsert):
            self.place(change)

    def all(self, records: list[tuple[int, Change]]) -> Replay:
        for _, change in records:
            try:
                self.change(change)
            except WindfireError:
                continue
        return self

    def state(self) -> tuple[object, ...]:
        untouched = {f"old-{n}": repr(None).encode() for n in range(2)}
        return self.rows, list(self.codes.items()), untouched | self.vectors


@settings(max_examples=500)
@given(log=changes, cuts=st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_what_is_folded_and_the_rest_is_the_whole(log: list[Change], cuts: tuple[int, int]) -> None:
    records = list(enumerate(log))
    first, second = sorted(cuts)
    once = fold(records[:second])
    twice = fold([*fold(records[:first]), *records[first:second]])
    for tokenizer in ("mine", "other", "a third"):
        whole = Replay(tokenizer).all(records).state()
        assert Replay(tokenizer).all(once + records[second:]).state() == whole
        assert Replay(tokenizer).all(twice + records[second:]).state() == whole
    assert all(record in records[:second] for record in once)
    assert [number for number, _ in once] == sorted({number for number, _ in once})
    assert fold(once) == once


@settings(max_examples=20)
@given(log=st.lists(changes, min_size=10, max_size=10).map(lambda parts: [*chain(*parts)]))
def test_an_item_keeps_few_records_however_often_it_changes(log: list[Change]) -> None:
    kept = Counter(change.item_id for _, change in fold(enumerate(log)))
    # the first for each of 4 code tuples under two tokenizers and none, with letters and without (none has them); the
    # last that all, and two tokenizers, can read; the last; one of each other kind
    assert max(kept.values(), default=0) <= 4 * 2 * 2 + 1 + 3 + 1 + 3


def test_the_first_that_has_letters_places_an_item_for_who_cannot_read_the_vector() -> None:
    def put(number: int, title: str) -> Numbered:
        encoded = Encoded(tokenizer="other", codes=(1,), text=repr(title).encode())
        return number, Upsert(item_id="new-0", time=0, title=title, encoded=encoded)

    log = [put(0, "?!"), put(1, "red"), put(2, "blue")]
    for tokenizer in ("mine", "other"):
        whole = Replay(tokenizer).all(log)
        assert Replay(tokenizer).all(fold(log)).state() == whole.state()
    assert Replay("mine").all(fold(log)).codes == {"new-0": (b"'red'", [])}


def test_words_that_one_tokenizer_alone_can_read_do_not_hide_those_before() -> None:
    def put(number: int, title: str | None) -> Numbered:
        encoded = Encoded(tokenizer="mine", codes=(1,), text=repr(title).encode())
        return number, Upsert(item_id="old-1", time=0, title=title, encoded=encoded)

    log = [put(0, "blue"), put(1, "red"), put(2, None)]
    assert fold(log) == log
    for tokenizer, vector in (("mine", b"None"), ("other", b"'red'")):
        assert Replay(tokenizer).all(fold(log)).vectors == {"old-1": vector}


def test_of_a_put_item_four_records_stay() -> None:
    encoded = Encoded(tokenizer="mine", codes=(1,), text=b"")
    log: list[Change] = [
        Upsert(item_id="a", time=n, title="red", encoded=encoded if n == 0 else None) for n in range(99)
    ]
    log += [Stock(item_id="a", time=n, stock=n) for n in range(99)]
    assert [number for number, _ in fold(enumerate(log))] == [0, 1, 98, 197]  # 1 places it where 0 does not


@settings(max_examples=40)
@given(log=changes, start=st.integers(0, 10**6), more=st.integers(0, 9))
def test_a_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, log: list[Change], start: int, more: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changes.log"
    legal = [change for change in log if not (isinstance(change, Upsert) and change.encoded is None)]
    folded = Folded(start, start + len(legal) + more, list(enumerate(legal, start)))
    write_folded(path, folded)
    assert read_folded(path) == folded


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "changes.log"
    write_folded(path, Folded(3, 9, [(4, Delete(item_id="a", time=0)), (7, Stock(item_id="b", time=0, stock=1))]))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptionError):
            read_folded(path)
    for cut in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptionError):
            read_folded(path)


@pytest.mark.parametrize(
    "head",
    [
        b"nothing",
        b'{"format": "windfire.changes/2", "start": 0, "end": 9}',
        b'{"format": "windfire.changes/1", "start": 5, "end": 9}',
        b'{"format": "windfire.changes/1", "start": 0, "end": 4}',
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "changes.log"
    write_folded(path, Folded(0, 9, [(4, Delete(item_id="a", time=0))]))
    rest = path.read_bytes()[len(frame(b'{"format":"windfire.changes/1","start":0,"end":9}')) :]
    path.write_bytes(frame(head) + rest)
    with pytest.raises(CorruptionError, match="holds no changes"):
        read_folded(path)
