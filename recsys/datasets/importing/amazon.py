"""The sequential Amazon review sets: Beauty 2014 (with days) and Scientific 2018 (order only)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from recsys.datasets.importing.assembly import SourceDataset, SourceTable
from recsys.datasets.importing.chunks import Chunk, Reading, Rejection, escape, read_blocks
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.plans import Field, TablePlan
from recsys.datasets.importing.times import time_converter
from recsys.datasets.importing.values import action, string_list, text
from recsys.errors import InputError
from recsys.records import EVENTS, ITEMS, Action, RejectReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_USERS_PER_CHUNK: Final = 4_096


def open_amazon2014(source: Path) -> SourceDataset:
    """Open a folder of sequences.txt, times.txt.gz and items.tsv; each review counts as a purchase.

    Raises:
        InputError: a file is absent.
    """
    sequences = SequencesFile(_file(source, "sequences.txt"), _file(source, "times.txt.gz"))
    items = DelimitedFile(_file(source, "items.tsv"), "items.tsv", delimiter="\t", quoted=False)
    return SourceDataset(
        events=SourceTable((sequences,), _event_plan(timed=True)),
        items=SourceTable((items,), _item_plan()),
        unique_event_ids=True,
    )


def open_amazon2018(source: Path) -> SourceDataset:
    """Open a folder of inter.json and item.json; there are no times, the order is the file's.

    Raises:
        InputError: a file is absent or not JSON.
    """
    events = JsonObjectFile(_file(source, "inter.json"), list, _interactions)
    items = JsonObjectFile(_file(source, "item.json"), dict, _item)
    return SourceDataset(
        events=SourceTable((events,), _event_plan(timed=False)),
        items=SourceTable((items,), _item_plan("brand", "text")),
        unique_event_ids=True,
    )


def _file(source: Path, name: str) -> Path:
    path = source / name
    if not path.is_file():
        raise InputError(f"{name} is absent", field="source", value=str(source), remedy="name the data set's folder")
    return path


def _event_plan(*, timed: bool) -> TablePlan:
    fields = [
        Field("event_id", text(), "event_id", required=True),
        Field("user_id", text(), "user_id", required=True),
        Field("item_id", text(), "item_id", required=True),
        Field("action", action({}), default=Action.PURCHASE.value),
    ]
    if timed:
        fields.append(Field("time", time_converter("s"), "time", required=True))
    return TablePlan(EVENTS, tuple(fields))


def _item_plan(*more: str) -> TablePlan:
    fields = (
        Field("item_id", text(), "item_id", required=True),
        Field("title", text(), "title"),
        Field("category_path", string_list(" > "), "categories"),
        *(Field(name, text(), name) for name in more),
    )
    return TablePlan(ITEMS, fields)


@dataclass(frozen=True, slots=True)
class SequencesFile:
    """`user item item ...` a line, and the same shape with Unix seconds in a second file.

    Every event is a row: it has the line of its user, and the id `sequences.txt:LINE:N`.

    Attributes:
        path: the items.
        times: the times; gzip where its name ends in .gz.
    """

    path: Path
    times: Path
    open_schema: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """Both files."""
        return self.path, self.times

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def columns(self) -> list[str]:
        """The columns that the rows have."""
        return ["event_id", "user_id", "item_id", "time"]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read line by line from both files; a line whose two forms differ is one rejected row."""
        del wanted
        pairs = zip_longest(_text_lines(self.path, reading), _text_lines(self.times, reading))
        held: list[tuple[int, str, str]] = []
        for line, (items, times) in enumerate(pairs, start=1):
            held.append((line, items or "", times or ""))
            if len(held) == _USERS_PER_CHUNK:
                yield self._chunk(held)
                held = []
        yield self._chunk(held)

    def _chunk(self, pairs: list[tuple[int, str, str]]) -> Chunk:
        columns: dict[str, list[Any]] = {name: [] for name in self.columns()}
        lines: list[int] = []
        rejected: list[Rejection] = []
        for line, left, right in pairs:
            items, times = left.split(), right.split()
            if not items and not times:
                continue
            if len(items) != len(times) or items[0] != times[0]:
                detail = f"{len(items)} fields for user {items[:1]}, {len(times)} in {self.times.name} for {times[:1]}"
                rejected.append(Rejection(line, RejectReason.BAD_SYNTAX, detail, left))
                continue
            count = len(items) - 1
            lines += [line] * count
            columns["event_id"] += [f"{self.name}:{line}:{number}" for number in range(count)]
            columns["user_id"] += items[:1] * count
            columns["item_id"] += items[1:]
            columns["time"] += times[1:]

        def raw(row: int) -> str:
            return " ".join(str(columns[name][row]) for name in ("user_id", "item_id", "time"))

        return Chunk({**columns}, np.array(lines, dtype=np.int64), raw, rejected)


def _text_lines(path: Path, reading: Reading) -> Iterator[str]:
    for block in read_blocks(path, reading):
        for line in block.splitlines():
            yield escape(line)


@dataclass(frozen=True, slots=True)
class JsonObjectFile:
    """One JSON object in memory at once; a key's place in it, from 1, stands for the line.

    Attributes:
        path: the file.
        entry: the type of the object's values.
        rows: (line, key, value) to rows.
    """

    path: Path
    entry: type
    rows: Callable[[int, str, Any], list[dict[str, Any]]]
    open_schema: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def columns(self) -> list[str]:
        """The columns that the rows have."""
        return ["event_id", "user_id", "item_id"]

    def chunks(self, wanted: Sequence[str], reading: Reading) -> Iterator[Chunk]:
        """Read all rows at once."""
        data = self.path.read_bytes()
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise InputError(
                f"this is not JSON: {error}", field="source", value=str(self.path), remedy="copy the file again"
            ) from error
        reading.advance(len(data))
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        rejected: list[Rejection] = []
        for line, (key, entry) in enumerate(value.items() if isinstance(value, dict) else (), start=1):
            if not isinstance(entry, self.entry):
                detail = f"a {type(entry).__name__} where a {self.entry.__name__} is expected"
                rejected.append(Rejection(line, RejectReason.WRONG_TYPE, detail, orjson.dumps({key: entry}).decode()))
                continue
            made = self.rows(line, key, entry)
            rows += made
            lines += [line] * len(made)
        columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in wanted}
        yield Chunk(columns, np.array(lines, dtype=np.int64), lambda row: orjson.dumps(rows[row]).decode(), rejected)


def _interactions(line: int, user: str, items: list[Any]) -> list[dict[str, Any]]:
    return [
        {"event_id": f"inter.json:{line}:{number}", "user_id": user, "item_id": item}
        for number, item in enumerate(items)
    ]


def _item(line: int, item: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    del line
    categories = [part.strip() for part in str(entry.get("categories") or "").split(",")]
    row = {"item_id": item, "title": entry.get("title"), "brand": entry.get("brand")}
    return [{**row, "categories": categories, "text": entry.get("description")}]
