"""An exported model on the disk, as the plug-in reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from recsys.backends.vllm_format import ExportManifest, Vocabulary
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError, DataError
from recsys.models.config import RecommenderConfig

if TYPE_CHECKING:
    import numpy.typing as npt

_REMEDY = "export the model again with `windfire export-vllm`"


@dataclass(frozen=True, slots=True)
class Export:
    """What lies beside the weights; arrays are memory maps.

    Attributes:
        manifest: `windfire.json`.
        config: of the model.
        codes: (I, L) int32 semantic IDs.
        last_row: (I,) int32 the last token of each item.
        train_counts: (I,) int64, the order inside a bucket.
    """

    manifest: ExportManifest
    config: RecommenderConfig
    codes: npt.NDArray[np.int32]
    last_row: npt.NDArray[np.int32]
    train_counts: npt.NDArray[np.int64]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a directory that `windfire export-vllm` wrote.

        Raises:
            DataError: it is none, or its arrays do not fit its manifest.
        """
        directory = Path(path)
        manifest = ExportManifest.load(directory)
        config = RecommenderConfig.from_dict(manifest.model)
        shapes = {
            "codes": (manifest.items, config.levels),
            "last_row": (manifest.items,),
            "train_counts": (manifest.items,),
        }
        arrays = {}
        for name, shape in shapes.items():
            try:
                arrays[name] = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{name}.npy cannot be read: {error}", field="path", value=str(directory)) from error
            if arrays[name].shape != shape:
                raise DataError(f"must have shape {shape}", field=name, value=arrays[name].shape, remedy=_REMEDY)
        return cls(manifest, config, **arrays)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its token ids."""
        return Vocabulary(self.config.codebook_sizes, self.manifest.last_rows, self.config.placeholders)

    def trie(self) -> SidTrie:
        """All semantic IDs of the catalogue."""
        return SidTrie.build(self.codes, self.config.codebook_sizes)

    def prompt(self, history: npt.NDArray[np.integer]) -> list[int]:
        """The token ids of a history's newest items, at most `max_history`."""
        read = history[-self.config.max_history :]
        return self.vocabulary.prompt(self.codes[read], self.last_row[read])

    def check_server(self, *, longest: int) -> None:
        """Refuse settings of the server under which some histories could not be read.

        Args:
            longest: tokens of a prompt that the server takes, its `max_model_len`.

        Raises:
            ConfigError: a history of `max_history` items does not fit.
        """
        needed = self.vocabulary.longest(self.config.max_history)
        if longest < needed:
            raise ConfigError(
                f"a history of {self.config.max_history} items and its placeholders are {needed} tokens",
                field="max_model_len",
                value=longest,
                remedy=f"start vLLM with --max-model-len {needed} or more, or without it",
            )
