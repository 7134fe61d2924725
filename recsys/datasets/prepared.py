"""What the offline jobs hand to training, evaluation and publishing, as NumPy arrays.

Every job owns one folder below the work directory: `<work>/<job>/data/*.parquet` and `<work>/<job>/manifest.json`
(format, job, inputs, settings, counts, seconds, fingerprint). Items are named by a dense `item_index`: the rank
of item_id in byte order. The columns, per job:

=================  =======================================================================================
items              item_index int32, train_count int64, then every column of `recsys.records.ITEMS`
sequences          user_id, items list<int32>, times list<int64>, seqs list<int64>, scenes list<string>,
                   actions list<string>: positive events in canonical order
splits             user_id, train_end int32, valid_index int32, test_index int32 (-1 = none): training sees
                   items[:train_end]; the history of a target at position t is items[:t]
text_embeddings    item_index int32, vector list<float32>, has_text bool
cooccurrence       item_a int32, item_b int32 (a < b), count int64; training interactions only
collaborative      item_index int32, vector list<float32>
semantic_ids       item_index int32, codes list<int32>; beside data/: .npy files and tokenizer.json
popularity         scene string ('' = all scenes), item_index int32, count int64; training interactions only
item_to_item       item_index int32, neighbour int32, rank int32 (from 0), score float64; at most 200 each
=================  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recsys.errors import DataError
from recsys.storage import read_json, read_parquet_directory

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sequences:
    """Positive events per user, flattened.

    Attributes:
        user_ids: (U,) str objects.
        offsets: (U + 1,) int64; user u owns items[offsets[u]:offsets[u + 1]].
        items: (E,) int32 item indices in canonical order.
        times: (E,) int64 microseconds.
        train_end: (U,) int32, number of leading events that training may see.
        valid_index: (U,) int32 position of the validation target, -1 for none.
        test_index: (U,) int32 position of the test target, -1 for none.
    """

    user_ids: npt.NDArray[np.object_]
    offsets: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    train_end: npt.NDArray[np.int32]
    valid_index: npt.NDArray[np.int32]
    test_index: npt.NDArray[np.int32]

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    def training(self, user: int) -> npt.NDArray[np.int32]:
        """The items of `user` that training may see, oldest first."""
        start = self.offsets[user]
        return self.items[start : start + self.train_end[user]]

    def targets(self, part: str) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int32]], npt.NDArray[np.int32]]:
        """The evaluation cases of a part, "valid" or "test".

        Returns:
            users (N,), histories (N arrays, oldest first), targets (N,).
        """
        index = {"valid": self.valid_index, "test": self.test_index}[part]
        users = np.flatnonzero(index >= 1)
        starts = self.offsets[users]
        histories = [self.items[s : s + i] for s, i in zip(starts, index[users], strict=True)]
        return users, histories, self.items[starts + index[users]]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """One work directory in memory.

    Attributes:
        items: the items table, row r is item_index r.
        sequences: users' positive events and the split.
        text: (I, D_t) float32 text embeddings; the zero vector where an item has no text.
        collaborative: (I, D_c) float32; the zero vector where an item has no training interaction.
        codes: (I, L) int32 semantic IDs.
        codebook_sizes: T_1..T_L.
        tokenizer_version: names the codebooks and the assignment.
        train_counts: (I,) int64 training interactions per item.
    """

    items: pa.Table
    sequences: Sequences
    text: npt.NDArray[np.float32]
    collaborative: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    tokenizer_version: str
    train_counts: npt.NDArray[np.int64]

    @classmethod
    def load(cls, work: Path) -> PreparedData:
        """Read the outputs of the offline jobs.

        Raises:
            DataError: a job has not run, or two jobs disagree on the number of items.
        """
        items = read_job(work, "items").sort_by("item_index")
        tokenizer: dict[str, Any] = read_json(work / "semantic_ids" / "tokenizer.json")
        data = cls(
            items=items,
            sequences=load_sequences(work),
            text=_matrix(read_job(work, "text_embeddings"), "vector"),
            collaborative=_matrix(read_job(work, "collaborative"), "vector"),
            codes=_matrix(read_job(work, "semantic_ids"), "codes").astype(np.int32),
            codebook_sizes=tuple(tokenizer["codebook_sizes"]),
            tokenizer_version=tokenizer["tokenizer_version"],
            train_counts=items["train_count"].to_numpy(),
        )
        rows = {"text": len(data.text), "collaborative": len(data.collaborative), "codes": len(data.codes)}
        for name, count in rows.items():
            if count != items.num_rows:
                raise DataError(
                    f"{items.num_rows} items but another number of rows in {name}",
                    field=name,
                    value=count,
                    remedy="run `windfire offline run` again on this work directory",
                )
        return data


def read_job(work: Path, job: str) -> pa.Table:
    """Read a job's output table.

    Raises:
        DataError: the job has not run in this work directory.
    """
    try:
        return read_parquet_directory(work / job / "data")
    except FileNotFoundError:
        raise DataError(
            "an offline job's output is missing",
            field="job",
            value=job,
            remedy="run `windfire offline run` first",
        ) from None


def load_sequences(work: Path) -> Sequences:
    """Read sequences and splits, users in byte order of user_id."""
    table = read_job(work, "sequences").sort_by("user_id")
    splits = read_job(work, "splits").sort_by("user_id")
    if table["user_id"].combine_chunks() != splits["user_id"].combine_chunks():
        raise DataError("sequences and splits name different users", remedy="run `windfire offline run` again")
    column = table["items"].combine_chunks()
    lengths = np.asarray(column.value_lengths(), dtype=np.int64)
    return Sequences(
        user_ids=np.asarray(table["user_id"].to_pylist(), dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=column.flatten().to_numpy(zero_copy_only=False).astype(np.int32),
        times=table["times"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        train_end=splits["train_end"].to_numpy().astype(np.int32),
        valid_index=splits["valid_index"].to_numpy().astype(np.int32),
        test_index=splits["test_index"].to_numpy().astype(np.int32),
    )


def _matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    values = table.sort_by("item_index")[column].combine_chunks()
    flat: npt.NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), -1)
