"""Rows parted by the hash of a key into files on disk, so that each key's rows are met together, a part at a time."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Hashes = npt.NDArray[np.uint64]

_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4")


def hash64(values: pa.Array | pa.ChunkedArray) -> Hashes:
    """A 64-bit hash per string, the same in every process. (N,) uint64."""
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = combined.dictionary_encode()
    digests = b"".join([blake2b(value.encode(), digest_size=8).digest() for value in encoded.dictionary.to_pylist()])
    distinct: Hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    hashes: Hashes = distinct[encoded.indices.to_numpy(zero_copy_only=False)]
    return hashes


class Spill:
    """Append-only partition files; within a partition rows keep the order in which they came.

    Args:
        folder: an empty or absent folder for the files; removed with its parent by the owner.
        partitions: number of files.
    """

    def __init__(self, folder: Path, partitions: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.partitions = partitions
        self._folder = folder
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table, key: pa.Array | pa.ChunkedArray) -> None:
        """Append rows; a row goes to the partition that the hash of its key says. `key`: (N,) strings."""
        if not table.num_rows:
            return
        if self.partitions == 1:
            self._write(0, table)
            return
        parts = (hash64(key) % np.uint64(self.partitions)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        table = table.take(pa.array(order))
        edges = np.searchsorted(parts[order], np.arange(self.partitions + 1))
        for part in np.flatnonzero(np.diff(edges)).tolist():
            self._write(part, table.slice(edges[part], edges[part + 1] - edges[part]))

    def close(self) -> None:
        """Finish writing; only then may partitions be read."""
        for writer in self._writers.values():
            writer.close()

    def read(self, partition: int, rows: int) -> Iterator[pa.Table]:
        """A partition's rows in tables of at least `rows` rows (the last may have fewer)."""
        if partition not in self._writers:
            return
        with pa.OSFile(str(self._path(partition))) as file, pa.ipc.open_stream(file) as reader:
            held: list[pa.RecordBatch] = []
            count = 0
            for batch in reader:
                held.append(batch)
                count += batch.num_rows
                if count >= rows:
                    yield pa.Table.from_batches(held).combine_chunks()
                    held, count = [], 0
            if held:
                yield pa.Table.from_batches(held).combine_chunks()

    def read_all(self, partition: int) -> pa.Table | None:
        """A partition in one table; None where it has no row."""
        tables = list(self.read(partition, 1 << 62))
        return tables[0] if tables else None

    def drop(self, partition: int) -> None:
        """Remove a partition's file."""
        self._path(partition).unlink(missing_ok=True)

    def _write(self, partition: int, table: pa.Table) -> None:
        writer = self._writers.get(partition)
        if writer is None:
            writer = pa.ipc.new_stream(str(self._path(partition)), table.schema, options=_OPTIONS)
            self._writers[partition] = writer
        writer.write_table(table.combine_chunks())

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition:04d}.arrow"


def first_of_each(table: pa.Table, key: str, order: list[str]) -> npt.NDArray[np.bool_]:
    """Which rows come first among the rows with their key, by the columns of `order`. (N,) bool."""
    codes = table[key].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    winners = np.ones(table.num_rows, dtype=bool)
    repeated = np.flatnonzero(np.bincount(codes)[codes] > 1) if len(codes) else codes
    if not len(repeated):
        return winners
    contest = table.select(order).take(pa.array(repeated))
    contest = contest.append_column("_code", pa.array(codes[repeated])).append_column("_row", pa.array(repeated))
    contest = contest.sort_by([(name, "ascending") for name in ["_code", *order]])
    ranked = contest["_code"].to_numpy()
    rows = contest["_row"].to_numpy()
    winners[rows[1:][ranked[1:] == ranked[:-1]]] = False
    return winners


class KnownIds:
    """A set of ids as sorted 64-bit hashes: 8 bytes an id (a stranger is taken for one of n ids once in 2^64 / n)."""

    def __init__(self, parts: list[Hashes]) -> None:
        self._hashes = np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)

    def holds(self, ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which of the (N,) ids are in the set."""
        wanted = hash64(ids)
        places = np.searchsorted(self._hashes, wanted)
        found = np.zeros(len(wanted), dtype=bool)
        inside = places < len(self._hashes)
        found[inside] = self._hashes[places[inside]] == wanted[inside]
        return found


class Positions:
    """Counts each user's rows as they come."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def number(self, users: pa.Array) -> npt.NDArray[np.int64]:
        """The position of each row among its user's rows so far, from 0. (N,) int64."""
        encoded = users.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        names = encoded.dictionary.to_pylist()
        fresh = np.bincount(codes, minlength=len(names))
        before = np.array([self.counts.get(name, 0) for name in names], dtype=np.int64)
        order = np.argsort(codes, kind="stable")
        firsts = np.concatenate([[0], np.cumsum(fresh)[:-1]]) if len(names) else fresh
        result = np.empty(len(codes), dtype=np.int64)
        result[order] = np.arange(len(codes)) - firsts[codes[order]] + before[codes[order]]
        self.counts.update(zip(names, (before + fresh).tolist(), strict=True))
        return result


def present(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values are not null. (N,) bool."""
    mask: npt.NDArray[np.bool_] = pc.is_valid(array).to_numpy(zero_copy_only=False)
    return mask
