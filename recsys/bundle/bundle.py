"""One published version, opened for reading: arrays are memory maps that processes share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import pyarrow.parquet as pq

from recsys.bundle.compaction import folded_of
from recsys.bundle.external import EXTERNAL, ExternalModel
from recsys.bundle.manifest import BundleManifest, check_sizes, verify_files, verify_once
from recsys.bundle.shown_items import shown_items
from recsys.catalog import Catalog, ItemIndex
from recsys.catalog.arrays import load_array, load_json
from recsys.errors import DataError, VersionMismatchError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from recsys.catalog.changes import Change
    from recsys.decoding.trie import SidTrie

ALL_SCENES: Final = ""
"""The scene under which popularity counts every scene together."""

RETRIEVAL: Final = "retrieval"
"""Folder of the indexes, in a work directory and in a bundle that has some."""

_ITEMS: Final = "items.parquet"


@dataclass(frozen=True, slots=True)
class ItemToItem:
    """Neighbours of every item as CSR arrays, best first.

    Attributes:
        offsets: (I + 1,) int64; item i owns neighbours[offsets[i]:offsets[i + 1]].
        neighbours: (E,) int32.
        scores: (E,) float32, non-increasing for each item.
    """

    offsets: npt.NDArray[np.int64]
    neighbours: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def of(self, item: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The neighbours of an item index and their scores."""
        part = slice(self.offsets[item], self.offsets[item + 1])
        return self.neighbours[part], self.scores[part]


@dataclass(frozen=True)
class Bundle:
    """Everything that serving loads.

    Attributes:
        path: the version's directory.
        manifest: versions, checksums, metrics, configuration.
        catalog: item ids and attributes at the manifest's catalog sequence.
        codes: (I, L) int32 semantic IDs.
        codebook_sizes: T_1..T_L.
        text: (I, D_t) float32; the zero vector where an item has no text.
        collaborative: (I, D_c) float32; the zero vector where an item has no training interaction.
        train_counts: (I,) int64 training interactions.
        popularity: scene to item indices by falling count, equal counts by index; '' = all scenes.
        item_to_item: neighbours per item.
        host: directory of this host for what its processes share, see `Bundle.open`; None = nothing.
    """

    path: Path
    manifest: BundleManifest
    catalog: Catalog
    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    text: npt.NDArray[np.float32]
    collaborative: npt.NDArray[np.float32]
    train_counts: npt.NDArray[np.int64]
    popularity: dict[str, npt.NDArray[np.int32]]
    item_to_item: ItemToItem
    host: Path | None = None

    @classmethod
    def open(cls, path: Path, *, verify: bool = True, markers: Path | None = None) -> Bundle:
        """Open a version's directory.

        Args:
            path: the directory that holds manifest.json.
            verify: hash every file; False compares sizes only.
            markers: a host-local directory that remembers what was verified, so that only the first process of a
                host hashes the files, and holds what all map of `shown`; None hashes every time.

        Raises:
            DataError: no bundle there, or one of another format.
            CorruptionError: a file is missing or differs from its checksum; names the file.
            VersionMismatchError: the tokenizer in the bundle is not the manifest's.
        """
        manifest = BundleManifest.load(path)
        if not verify:
            check_sizes(path, manifest.files)
        elif markers is None:
            verify_files(path, manifest.files)
        else:
            verify_once(path, manifest.files, markers)
        if f"model/{EXTERNAL}" in manifest.files:
            ExternalModel.load(path / "model").verify(hashes=verify, markers=markers)
        tokenizer = load_json(path / "tokenizer" / "tokenizer.json")
        if tokenizer["tokenizer_version"] != manifest.tokenizer_version:
            raise VersionMismatchError(
                f"the manifest names tokenizer {manifest.tokenizer_version}",
                field="tokenizer_version",
                value=tokenizer["tokenizer_version"],
                remedy="publish the model again with the work directory it was trained on",
            )
        bundle = cls(
            path=path,
            manifest=manifest,
            catalog=Catalog.open(path / "catalog"),
            codes=load_array(path / "codes.npy"),
            codebook_sizes=tuple(tokenizer["codebook_sizes"]),
            text=load_array(path / "text.npy"),
            collaborative=load_array(path / "collaborative.npy"),
            train_counts=load_array(path / "train_counts.npy"),
            popularity=_open_popularity(path / "popularity"),
            item_to_item=ItemToItem(
                *(load_array(path / "item_to_item" / f"{name}.npy") for name in ("offsets", "neighbours", "scores"))
            ),
            host=markers,
        )
        bundle._check_rows()
        return bundle

    @property
    def item_ids(self) -> ItemIndex:
        """Item ids by index, and back."""
        return self.catalog.index

    @cached_property
    def items(self) -> pa.Table:
        """The items table (`recsys.records.ITEMS` plus item_index and train_count), row r = item index r."""
        return pq.read_table(self.path / _ITEMS, memory_map=True)

    @cached_property
    def shown(self) -> pa.Table:
        """Of the items table what serving reads (`shown_items.COLUMNS`), shared by the processes of a host."""
        return shown_items(self.path / _ITEMS, self.manifest.files[_ITEMS].sha256, self.host)

    @cached_property
    def trie(self) -> SidTrie:
        """The trie of the snapshot's semantic IDs: the model's frozen normaliser."""
        from recsys.decoding.trie import SidTrie  # with Numba

        # in the order that decoders give the items of a leaf, so that they need no order of their own
        return SidTrie.build(self.codes, self.codebook_sizes).preferring(self.train_counts)

    @property
    def changes(self) -> list[Change]:
        """What of the catalogue log is folded into it, in its order; together with the snapshot its catalogue.

        Raises:
            CorruptionError: see `recsys.catalog.folding.read_folded`.
        """
        return [change for _, change in folded_of(self.path, self.manifest).records]

    @property
    def model_config_path(self) -> Path:
        """JSON of `recsys.models.RecommenderConfig`."""
        return self.path / "model" / "config.json"

    @property
    def weights_path(self) -> Path:
        """The model's weights as safetensors."""
        return self.path / "model" / "weights.safetensors"

    @property
    def has_indexes(self) -> bool:
        """Whether `recsys.bundle.loading.load_indexes` finds any."""
        return f"{RETRIEVAL}/retrieval.json" in self.manifest.files

    def popular(self, scene: str | None) -> npt.NDArray[np.int32]:
        """Item indices by falling popularity in a scene; over all scenes where the scene is unknown."""
        overall = self.popularity[ALL_SCENES]
        return overall if scene is None else self.popularity.get(scene, overall)

    def _check_rows(self) -> None:
        rows = {
            "codes": len(self.codes),
            "text": len(self.text),
            "collaborative": len(self.collaborative),
            "train_counts": len(self.train_counts),
            "item_to_item": len(self.item_to_item.offsets) - 1,
            "catalog": len(self.catalog),
        }
        for name, count in rows.items():
            if count != self.manifest.items:
                raise DataError(
                    f"the manifest counts {self.manifest.items} items", field=name, value=count, remedy="publish again"
                )


def _open_popularity(directory: Path) -> dict[str, npt.NDArray[np.int32]]:
    scenes = load_json(directory / "scenes.json")
    offsets, items = load_array(directory / "offsets.npy"), load_array(directory / "items.npy")
    return {scene: items[offsets[n] : offsets[n + 1]] for n, scene in enumerate(scenes)}
