"""Rows come out of files as they went in, however the file is cut into blocks."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recsys.datasets.importing.chunks import MAX_LINE, Chunk, Limits, Reading
from recsys.datasets.importing.delimited import DelimitedFile
from recsys.datasets.importing.structured import JsonLinesFile, ParquetRows
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.datasets.importing.chunks import RowFile

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n,"'), max_size=4)
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=4)
BLOCKS = st.integers(1, 40)


def rows_of(chunks: list[Chunk], name: str) -> list[Any]:
    columns = (chunk.columns[name] for chunk in chunks)
    return list(chain.from_iterable(c if isinstance(c, list) else c.to_pylist() for c in columns))


def read(file: RowFile, wanted: list[str], block: int = 1 << 20) -> list[Chunk]:
    return list(file.chunks(wanted, Reading(Limits(block_bytes=block))))


@pytest.mark.parametrize("cells", [PLAIN, ANY])
@given(data=st.data(), block=BLOCKS)
def test_csv_round_trip(cells: st.SearchStrategy[str], data: st.DataObject, block: int) -> None:
    rows = data.draw(st.lists(st.tuples(cells, cells), max_size=8))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([("a", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(buffer.getvalue().encode())
        chunks = read(DelimitedFile(path, "x.csv"), ["b", "a"], block)
    assert list(zip(rows_of(chunks, "a"), rows_of(chunks, "b"), strict=True)) == rows
    assert not list(chain.from_iterable(chunk.rejected for chunk in chunks))
    line_of_row = [2 + sum(a.count("\n") + b.count("\n") + 1 for a, b in rows[:row]) for row in range(len(rows))]
    assert list(chain.from_iterable(chunk.lines.tolist() for chunk in chunks)) == line_of_row


@given(
    lines=st.lists(st.sampled_from(["u,1", "u,1,2", '"u,1', "\xff,1", "", '"u"x,1', '"a\nb",2']), max_size=8),
    block=BLOCKS,
)
@example(['"u,1', "u,1", '"a\nb",2', "u,1"], 1)
def test_blocks_change_nothing(lines: list[str], block: int) -> None:
    content = "a,b\n" + "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(content.encode("latin-1"))
        whole, cut = (read(DelimitedFile(path, "x.csv"), ["a", "b"], size) for size in (1 << 20, block))
    assert rows_of(cut, "a") == rows_of(whole, "a")
    assert [line for chunk in cut for line in chunk.lines] == [line for chunk in whole for line in chunk.lines]
    assert [entry for chunk in cut for entry in chunk.rejected] == [
        entry for chunk in whole for entry in chunk.rejected
    ]


def test_a_line_that_spoils_the_syntax_takes_no_other_row_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,"open\n2,two\n3,"three"\n4,5,6\n7,8\n')
    chunks = read(DelimitedFile(path, "x.csv"), ["a"])
    assert rows_of(chunks, "a") == ["2", "3", "7"]
    assert [(entry.line, entry.reason, entry.raw) for entry in chunks[0].rejected] == [
        (2, "bad_syntax", '1,"open'),
        (5, "bad_syntax", "4,5,6"),
    ]


def test_headers_lose_their_byte_order_mark_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbf a ,"b\nc"\r\n1,2\r\n')
    file = DelimitedFile(path, "x.csv")
    assert file.columns() == ["a", "b\nc"]
    assert rows_of(read(file, ["b\nc"]), "b\nc") == ["2"]
    assert read(file, ["a"])[0].lines.tolist() == [3]


def test_quotes_can_be_plain_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('a\tb\n"Pro" mask\t1\n')
    assert rows_of(read(DelimitedFile(path, "x.tsv", "\t", quoted=False), ["a"]), "a") == ['"Pro" mask']


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:20] + b"\0\0\0\0" + data[24:], lambda _: b"no gzip"]
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(damage(gzip.compress(b"a,b\n" + b"".join(b"%d,2\n" % n for n in range(9999)), mtime=0)))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"cut off or damaged.*x\.csv\.gz.*copy or download"):
        read(DelimitedFile(path, "x.csv.gz"), ["a"])


def test_a_file_without_line_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n" + b"x" * 2 * MAX_LINE)
    with pytest.raises(InputError, match="a line is longer"):
        read(DelimitedFile(path, "x.csv"), ["a"], 16)


@given(block=BLOCKS)
def test_json_lines(block: int) -> None:
    lines = [b'{"a": 1, "b": "x"}', b"", b"[1]", b'{"a": "\xff"}', b'{"a": ', b'{"b": null}']
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(b"\n".join(lines))
        chunks = read(JsonLinesFile(path, "x.jsonl"), ["a", "c"], block)
        assert JsonLinesFile(path, "x.jsonl").columns() == ["a", "b"]
    assert rows_of(chunks, "a") == [1, None]
    assert rows_of(chunks, "c") == [None, None]
    assert [n for chunk in chunks for n in chunk.lines] == [1, 6]
    rejected = [(entry.line, entry.reason, entry.raw) for chunk in chunks for entry in chunk.rejected]
    assert rejected == [(3, "bad_syntax", "[1]"), (4, "bad_encoding", '{"a": "\\xff"}'), (5, "bad_syntax", '{"a": ')]


def test_parquet_strings_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    binary = pa.array([b"ok", b"\xff"], pa.binary())
    strings = pa.StringArray.from_buffers(2, binary.buffers()[1], binary.buffers()[2])
    pq.write_table(pa.table({"a": strings, "n": [1, 2]}), path)
    (chunk,) = read(ParquetRows(path, "x.parquet"), ["a", "n"])
    first, second = chunk.columns["a"]
    assert first == "ok"
    assert isinstance(second.cause, UnicodeDecodeError)
    assert chunk.raw(0) == '{"a":"ok","n":1}'


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="no readable Parquet file"):
        ParquetRows(path, "x.parquet").columns()


def test_the_bytes_read_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"1\n" * 5000))
    told: list[int] = []
    list(DelimitedFile(path, "x").chunks(["a"], Reading(Limits(block_bytes=100), told.append)))
    assert sum(told) == path.stat().st_size
