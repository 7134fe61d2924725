"""What serving reads of the items table, memory-mapped: all processes of a host share the same pages.

Parquet must be decoded into private memory. So the first process of a host writes the decoded columns beside the marks
of verified files, under the checksum of what they were decoded from, and everybody maps that file.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.storage import fsync_path

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS: Final = (
    "item_id", "title", "category_path", "brand", "price_micros", "available_from", "available_until", "text",
)  # fmt: skip
_KEPT: Final = 4  # files: the served bundle, canary, shadow, and one that comes
_ABANDONED: Final = 3_600.0  # seconds after which half a file belongs to a process that was killed


def shown_items(parquet: Path, sha256: str, host: Path | None) -> pa.Table:
    """`COLUMNS` of an items table, in one chunk per column.

    Args:
        parquet: the table.
        sha256: its checksum.
        host: directory of this host; None, or one that cannot be written: the columns are read into private memory.
    """
    if host is None:
        return _decoded(parquet)
    path = host / f"items-{sha256}.arrow"
    with suppress(OSError, pa.ArrowInvalid):
        return _mapped(path)
    table = _decoded(parquet)
    try:
        _write(path, table)
        return _mapped(path)
    except OSError:
        return table


def _decoded(parquet: Path) -> pa.Table:
    table = pq.read_table(parquet, columns=list(COLUMNS))
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):  # whose chunks cannot be joined beyond 2 GiB
            table = table.set_column(place, field.name, table[field.name].cast(pa.large_string()))
    return table.combine_chunks()


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:  # the buffers hold the map
        table = pa.ipc.open_file(source).read_all()
    with suppress(OSError):
        os.utime(path)  # those unused for longest go first
    return table


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _clean(path.parent)


def _clean(folder: Path) -> None:
    """Remove what no process has mapped for long; one that still has it keeps its pages."""
    with suppress(OSError):
        files = sorted(folder.glob("items-*.arrow"), key=lambda each: each.stat().st_mtime)
        left = [each for each in folder.glob(".items-*.tmp") if time.time() - each.stat().st_mtime > _ABANDONED]
        for each in (*files[:-_KEPT], *left):
            each.unlink(missing_ok=True)
