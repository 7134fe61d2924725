"""A work directory with the semantic IDs of somebody else's tokenizer: items without one are left out of every job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.datasets.prepared import read_job
from recsys.errors import DataError
from recsys.storage import staged_directory, write_bytes_atomically, write_json_atomically

if TYPE_CHECKING:
    import numpy.typing as npt

_BY_ITEM: Final = ("text_embeddings", "collaborative", "popularity")
_BY_PAIR: Final = {"cooccurrence": ("item_a", "item_b"), "item_to_item": ("item_index", "neighbour")}
_NONE: Final = -1


class ForeignIds(NamedTuple):
    """Semantic IDs that were not made here.

    Attributes:
        item_ids: (I,) in byte order.
        codes: (I, L) int32.
        sizes: T_1..T_L.
        version: names them.
    """

    item_ids: list[str]
    codes: npt.NDArray[np.int32]
    sizes: tuple[int, ...]
    version: str


class Kept(NamedTuple):
    """What was taken over from a work directory.

    Attributes:
        items: of the catalogue, that have a semantic ID.
        dropped: of the catalogue, that have none.
        events: of the users' sequences that were kept.
        dropped_events: those of items without a semantic ID.
    """

    items: int
    dropped: int
    events: int
    dropped_events: int


def derive_work(work: Path, out: Path, ids: ForeignIds) -> Kept:
    """Write a work directory of the items that have foreign semantic IDs.

    Args:
        work: what `windfire offline run` left.
        out: replaced as a whole.
        ids: at least those of the items to keep; others are left aside.

    Raises:
        DataError: a job is missing, or no item of the catalogue has a semantic ID.
    """
    items = read_job(work, "items").sort_by("item_index")
    known = pc.index_in(items["item_id"], value_set=pa.array(ids.item_ids, pa.string())).to_numpy()
    keep = ~np.isnan(np.asarray(known, dtype=np.float64))  # (I,)
    if not keep.any():
        raise DataError(
            "no item of the catalogue has a semantic ID",
            field="item_id",
            value=items["item_id"][:3].to_pylist(),
            remedy=f"the SID file must name the catalogue's item ids; it names {ids.item_ids[:3]}",
        )
    place = np.where(keep, np.cumsum(keep) - 1, _NONE)  # (I,) new index of each old one
    with staged_directory(out) as staged:
        kept = items.filter(pa.array(keep))
        _write(staged, "items", _renumbered(kept, "item_index", place))
        for job in _BY_ITEM:
            _write(staged, job, _renumbered(read_job(work, job), "item_index", place))
        for job, columns in _BY_PAIR.items():
            if (work / job).is_dir():
                _write(staged, job, _renumbered(_renumbered(read_job(work, job), columns[0], place), columns[1], place))
        events, total = _write_sequences(work, staged, place)
        rows = np.asarray(known)[keep].astype(np.int64)
        _write_ids(staged, ids, rows)
        cleaned = work / "clean" / "manifest.json"
        if cleaned.is_file():  # says how much of the source was read
            write_bytes_atomically(staged / "clean" / "manifest.json", cleaned.read_bytes())
    return Kept(int(keep.sum()), int((~keep).sum()), events, total - events)


def _renumbered(table: pa.Table, column: str, place: npt.NDArray[np.int64]) -> pa.Table:
    """The rows of kept items, under their new indices."""
    found = place[table[column].to_numpy()]
    kept = found != _NONE
    at = table.column_names.index(column)
    return table.filter(pa.array(kept)).set_column(at, column, pa.array(found[kept].astype(np.int32)))


def _write_sequences(work: Path, staged: Path, place: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Sequences and splits without the events of dropped items; returns events kept and events in all."""
    sequences, splits = read_job(work, "sequences").sort_by("user_id"), read_job(work, "splits").sort_by("user_id")
    lists = sequences["items"].combine_chunks()
    lengths = np.asarray(lists.value_lengths(), dtype=np.int64)
    found = place[lists.flatten().to_numpy(zero_copy_only=False)]
    kept = found != _NONE  # (E,)
    before = np.concatenate([[0], np.cumsum(kept)])  # (E + 1,) kept events in front of each
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    columns: dict[str, Any] = {"user_id": sequences["user_id"]}
    ends = pa.array(before[offsets], pa.int32())
    for name in sequences.column_names:
        if name != "user_id":
            values = sequences[name].combine_chunks().flatten().filter(pa.array(kept))
            values = pa.array(found[kept].astype(np.int32)) if name == "items" else values
            columns[name] = pa.ListArray.from_arrays(ends, values)
    _write(staged, "sequences", pa.table(columns))
    starts = offsets[:-1]

    def moved(name: str) -> pa.Array:
        """A position in the old sequence as one in the new; -1 where its item was dropped."""
        old = splits[name].to_numpy().astype(np.int64)
        at = starts + np.maximum(old, 0)
        stays = (old >= 0) & kept[np.minimum(at, len(kept) - 1)]
        return pa.array(np.where(stays, before[at] - before[starts], _NONE).astype(np.int32))

    train_end = before[starts + splits["train_end"].to_numpy()] - before[starts]
    new = {"user_id": splits["user_id"], "train_end": pa.array(train_end.astype(np.int32))}
    _write(staged, "splits", pa.table(new | {name: moved(name) for name in ("valid_index", "test_index")}))
    return int(kept.sum()), len(kept)


def _write_ids(staged: Path, ids: ForeignIds, rows: npt.NDArray[np.int64]) -> None:
    codes = ids.codes[rows]
    table = pa.table({"item_index": np.arange(len(codes), dtype=np.int32), "codes": list(codes)})
    _write(staged, "semantic_ids", table)
    tokenizer = {"tokenizer_version": ids.version, "codebook_sizes": list(ids.sizes), "imported": True}
    write_json_atomically(staged / "semantic_ids" / "tokenizer.json", tokenizer)


def _write(staged: Path, job: str, table: pa.Table) -> None:
    folder = staged / job / "data"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet", compression="zstd")
