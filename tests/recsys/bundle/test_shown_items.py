from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.bundle.manifest import describe_files, verify_once
from recsys.bundle.shown_items import COLUMNS, shown_items
from recsys.errors import CorruptionError
from recsys.records import ITEMS
from recsys.storage import sha256_file

ROWS = 5_000


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows = [
        {
            "item_id": f"item-{n}",
            "title": None if n % 7 == 0 else f"the title of number {n}",
            "category_path": [] if n % 5 == 0 else ["root", f"leaf {n % 11}"],
            "brand": f"brand {n % 13}",
            "price_micros": n,
            "text": "word " * 20,
            "available_until": n if n % 3 else None,
            "attributes": [],
        }
        for n in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), tmp_path / "items.parquet", row_group_size=900)
    return tmp_path / "items.parquet"


def mapped(parquet: Path, host: Path) -> pa.Table:
    return shown_items(parquet, sha256_file(parquet), host)


def test_it_is_the_table_and_costs_no_memory_of_the_process(parquet: Path, tmp_path: Path) -> None:
    wanted = pq.read_table(parquet, columns=list(COLUMNS)).to_pylist()
    assert mapped(parquet, tmp_path / "host").to_pylist() == wanted
    before = pa.total_allocated_bytes()
    table = mapped(parquet, tmp_path / "host")
    assert table.nbytes > 1 << 19
    assert pa.total_allocated_bytes() - before < 64 << 10
    assert {column.num_chunks for column in table.columns} == {1}
    assert table.to_pylist() == wanted
    assert shown_items(parquet, "", None).to_pylist() == wanted


def test_a_file_that_is_cut_off_is_written_again(parquet: Path, tmp_path: Path) -> None:
    mapped(parquet, tmp_path / "host")
    (file,) = (tmp_path / "host").iterdir()
    file.write_bytes(file.read_bytes()[:1_000])
    assert mapped(parquet, tmp_path / "host").num_rows == ROWS
    assert [each.name for each in (tmp_path / "host").iterdir()] == [file.name]
    assert file.stat().st_size > 1_000


def test_without_a_place_to_write_the_table_is_read(parquet: Path, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("a file where the folder should be")
    assert mapped(parquet, tmp_path / "host").num_rows == ROWS


def test_the_newest_few_files_stay(parquet: Path, tmp_path: Path) -> None:
    held = shown_items(parquet, "0", tmp_path / "host")
    for number in range(6):
        shown_items(parquet, str(number), tmp_path / "host")
        os.utime(tmp_path / "host" / f"items-{number}.arrow", (number, number))
    left = sorted(each.name for each in (tmp_path / "host").iterdir())
    assert left == [f"items-{number}.arrow" for number in (2, 3, 4, 5)]
    assert held["item_id"][ROWS - 1].as_py() == f"item-{ROWS - 1}"  # removed, and still mapped


def test_a_mark_that_cannot_be_written_refuses_no_bundle(parquet: Path, tmp_path: Path) -> None:
    files = describe_files(parquet.parent)
    (tmp_path / "marks").write_text("a file where the folder should be")
    verify_once(parquet.parent, files, tmp_path / "marks")
    parquet.write_bytes(parquet.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptionError):
        verify_once(parquet.parent, files, tmp_path / "marks")
