"""A tokenizer on disk: what the job `semantic_ids` leaves beside its rows.

`tokenizer.json` (tokenizer_version, codebook_sizes, settings, text encoder), one `.npy` per array of the tokenizer's
and the source's state, and `assigned/`: every semantic ID ever given under this version (item_id, codes).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.semantic_ids.sources import EmbeddingSource
from recsys.semantic_ids.tokenizer import Tokenizer, tokenizer_from_state
from recsys.storage import read_json, read_parquet_directory, sha256_file, sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

DESCRIPTION: Final = "tokenizer.json"
ASSIGNED: Final = "assigned"


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """A stored tokenizer.

    Attributes:
        description: `tokenizer.json`.
        settings: it was built with.
        tokenizer: its codebooks.
        source: of its vectors.
        item_ids: (M,) every item that ever got a semantic ID in this version.
        codes: (M, L) those, L + 1 with an extra digit.
    """

    description: dict[str, Any]
    settings: SemanticIdSettings
    tokenizer: Tokenizer
    source: EmbeddingSource
    item_ids: npt.NDArray[np.object_]
    codes: npt.NDArray[np.int32]

    @property
    def version(self) -> str:
        """The tokenizer version."""
        return str(self.description["tokenizer_version"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the codebooks, the extra digit's included."""
        return tuple(self.description["codebook_sizes"])

    def save(self, folder: Path) -> None:
        """Write into an empty folder, that a caller has staged."""
        write_json_atomically(folder / DESCRIPTION, self.description)
        for name, values in (self.tokenizer.state() | self.source.state()).items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        (folder / ASSIGNED).mkdir()
        offsets = pa.array(np.arange(len(self.codes) + 1, dtype=np.int32) * self.codes.shape[1])
        lists = pa.ListArray.from_arrays(offsets, pa.array(self.codes.ravel(), type=pa.int32()))
        table = pa.table({"item_id": pa.array(self.item_ids, pa.string()), "codes": lists})
        pq.write_table(table, folder / ASSIGNED / "part-0.parquet")

    @classmethod
    def load(cls, folder: Path) -> Artefact:
        """Read what `save` wrote; items in byte order.

        Raises:
            DataError: there is no tokenizer, or only the semantic IDs of one that was imported.
        """
        description = read_description(folder)
        if description is None or "settings" not in description or not (folder / ASSIGNED).is_dir():
            raise DataError(
                "no tokenizer of our own is here",
                field="semantic_ids",
                value=str(folder),
                remedy="give a work directory in which `windfire offline run` built the semantic IDs",
            )
        settings = SemanticIdSettings.model_validate(description["settings"])
        state = {path.stem: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
        tokenizer = tokenizer_from_state(settings.tokenizer, state)
        source = EmbeddingSource.from_state(settings, state, dimension=tokenizer.dimension)
        assigned = read_parquet_directory(folder / ASSIGNED).sort_by("item_id")
        lists = assigned["codes"].combine_chunks()
        codes = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32).reshape(len(lists), -1)
        ids = np.asarray(assigned["item_id"].to_pylist(), dtype=object)
        return cls(description, settings, tokenizer, source, ids, codes)


def read_description(folder: Path) -> dict[str, Any] | None:
    """`tokenizer.json` of a folder, None where it has none."""
    path = folder / DESCRIPTION
    return dict(read_json(path)) if path.is_file() else None


def artefact_checksum(folder: Path) -> str:
    """Checksum of the files that a later tokenizer would be built on.

    Raises:
        DataError: there is none.
    """
    files = [folder / DESCRIPTION, *sorted(folder.glob("*.npy")), *sorted((folder / ASSIGNED).glob("*.parquet"))]
    if not files[0].is_file():
        raise DataError(
            "no tokenizer is here",
            field="warm_start",
            value=str(folder),
            remedy="give a work directory in which `windfire offline run` built the semantic IDs",
        )
    return sha256_parts([part for file in files for part in (file.name, sha256_file(file))])


def version_of(
    tokenizer: Tokenizer, source: EmbeddingSource, item_ids: npt.NDArray[np.object_], codes: npt.NDArray[np.int32]
) -> str:
    """The name of a tokenizer and its assignment, derived from their bytes."""
    parts = [*tokenizer.state().values(), *source.state().values()]
    data = [np.ascontiguousarray(values, dtype="<f4").tobytes() for values in parts]
    data += ["\0".join(item_ids).encode(), np.ascontiguousarray(codes, dtype="<i4").tobytes()]
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()[:16]
