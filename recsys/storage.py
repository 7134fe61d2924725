"""Files that are whole or absent: staged directories, atomic writes, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHUNK = 1 << 20
_STAGED = ".staged-"
_REPLACED = ".replaced-"
_TOKEN_BYTES = 4


def fsync_path(path: Path) -> None:
    """Flush a file's or a directory's own entry to the device."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `data`: after a crash the file is the old one or the new one.

    Args:
        path: of the file; its directory is created where absent.
        data: all of its bytes.
        mode: its permissions, less the umask; never wider, not even for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed run with this number: its mode would stay
    with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Like `write_bytes_atomically`, with indented JSON in a stable key order."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        json.JSONDecodeError: it is not JSON.
    """
    return json.loads(path.read_bytes())


@contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `final` when the block ends without an error.

    Every file is flushed before the rename. An existing `final` is moved aside first and removed after; what
    a killed run left beside `final` is put back or removed on the next entry. The staged name is new each time, so that
    a child process that outlives a killed run cannot write into it.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    restore_directory(final)
    for litter in _beside(final, _STAGED):
        shutil.rmtree(litter, ignore_errors=True)
    token = secrets.token_hex(_TOKEN_BYTES)
    staged = final.with_name(f"{_STAGED}{token}-{final.name}")
    staged.mkdir()
    try:
        yield staged
        for file in sorted(staged.rglob("*")):
            fsync_path(file)
        fsync_path(staged)
        if final.exists():
            final.rename(final.with_name(f"{_REPLACED}{token}-{final.name}"))
        staged.rename(final)
        fsync_path(final.parent)
    finally:
        restore_directory(final)
        if staged.exists():
            shutil.rmtree(staged, ignore_errors=True)


def restore_directory(final: Path) -> None:
    """Put back what a run that was killed between the two renames of `staged_directory` had moved aside.

    Where `final` is there, what it replaced is removed. Call it before looking at a directory whose content the next
    run builds on.
    """
    for replaced in _beside(final, _REPLACED):
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)


def _beside(final: Path, prefix: str) -> list[Path]:
    if not final.parent.is_dir():
        return []
    start = len(prefix) + 2 * _TOKEN_BYTES + 1  # the token and its dash
    return [
        entry for entry in final.parent.iterdir() if entry.name.startswith(prefix) and entry.name[start:] == final.name
    ]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_parts(parts: Iterable[str | bytes]) -> str:
    """The SHA-256 of several parts, each preceded by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sorted_row_checksum(table: pa.Table) -> str:
    """A checksum of a table's rows that depends neither on their order nor on the partition into files."""
    columns = sorted(table.column_names)
    rows = [json.dumps(row, sort_keys=True, default=str).encode() for row in table.select(columns).to_pylist()]
    return sha256_parts([",".join(columns), *sorted(rows)])


def read_parquet_directory(directory: Path, columns: list[str] | None = None) -> pa.Table:
    """Read every Parquet file directly below `directory`, in the order of their names.

    Raises:
        FileNotFoundError: the directory holds no Parquet file.
    """
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no Parquet file in {directory}")
    # An increment's files stand beside older ones whose columns may differ in being nullable, and in nothing else.
    return pa.concat_tables([pq.read_table(file, columns=columns) for file in files], promote_options="default")
