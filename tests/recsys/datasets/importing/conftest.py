"""Small logs written to a temporary folder, and the tables read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from recsys.datasets.importing import ImportReport, Limits, import_dataset
from recsys.storage import read_parquet_directory

if TYPE_CHECKING:
    from pathlib import Path


class Workplace:
    """A folder with sources and the tables made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "tables"

    def write(self, name: str, content: str | bytes) -> Path:
        """A source file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_mapping(self, value: dict[str, Any]) -> Path:
        """A mapping file."""
        return self.write("mapping.yaml", json.dumps(value))

    def take(
        self, source: Path, name: str = "generic", mapping: Path | None = None, limits: Limits | None = None
    ) -> ImportReport:
        """Import a source and check that the counts of the account and of the tables agree."""
        report = import_dataset(name, source, self.out, mapping=mapping, limits=limits)
        counts = report.manifest.counts
        assert all(count.read == count.written + count.rejected for count in counts.values())
        assert {table: count.written for table, count in counts.items()} == {
            table: self.count(table) for table in counts
        }
        assert sum(count.rejected for count in counts.values()) == self.count("rejected")
        assert sum(report.manifest.reasons.values()) == self.count("rejected")
        return report

    def count(self, table: str) -> int:
        """The number of a table's rows."""
        return sum(pq.read_metadata(path).num_rows for path in (self.out / table).iterdir())

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table's rows without what is null."""
        rows = read_parquet_directory(self.out / table).to_pylist()
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def rejected(self) -> list[tuple[int, str, str]]:
        """(line, reason, raw) of the rejected rows."""
        return sorted((row["line"], row["reason"], row["raw"]) for row in self.rows("rejected"))


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A workplace of one's own."""
    return Workplace(tmp_path)
