"""From the words of a new item to its text vector and its semantic ID, as the bundle's own items got theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.bundle.bundle import RETRIEVAL
from recsys.catalog.arrays import load_json
from recsys.catalog.changes import Encoded
from recsys.errors import ConfigError, DataError
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.placement import Placement
from recsys.text.item_text import item_text

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.bundle.bundle import Bundle
    from recsys.catalog.changes import Upsert
    from recsys.retrieval.folder import Retrieval
    from recsys.retrieval.query_encoder import QueryEncoder


_LARGEST: Final = 1.01  # number in a text vector, which has unit length


class ItemEncoder:
    """Encodes new items under a bundle's tokenizer.

    Args:
        placement: gives semantic IDs.
        encoder: made the text vectors of the bundle's items; None where it is not loaded.
        dimension: D_t of those vectors.
    """

    def __init__(self, placement: Placement, encoder: QueryEncoder | None, dimension: int) -> None:
        self.placement, self._encoder, self._dimension = placement, encoder, dimension

    @property
    def reads_text(self) -> bool:
        """Whether an item can be encoded that nobody has encoded before."""
        return self._encoder is not None

    def vector(self, item: Upsert) -> npt.NDArray[np.float32] | None:
        """The text vector (D_t,) of an item; None where no encoder is loaded.

        Raises:
            InputError: there is nothing in title, category, brand and text.
        """
        if self._encoder is None:
            return None
        return self._encoder.encode(item_text(item.title, item.category_path, item.brand, item.text))

    def place(self, item_id: str, vector: npt.NDArray[np.float32]) -> Encoded:
        """Give an item its semantic ID; the same one again where it has one already."""
        codes = self.placement.given(item_id) or self.placement.place(vector)
        self.placement.take(item_id, codes)
        return self.written(vector, codes)

    def written(self, vector: npt.NDArray[np.float32], codes: tuple[int, ...] = ()) -> Encoded:
        """What the log keeps, so that no worker encodes the words again."""
        return Encoded(tokenizer=self.placement.version, codes=codes, text=vector.astype("<f4").tobytes())

    def read(self, item: Upsert) -> npt.NDArray[np.float32] | None:
        """As `vector`, out of the log where it was computed under this tokenizer and can be such a vector."""
        stored = item.encoded
        if (
            stored is not None
            and stored.tokenizer == self.placement.version
            and len(stored.text) == 4 * self._dimension
        ):
            vector = np.frombuffer(stored.text, dtype="<f4").astype(np.float32)
            if np.isfinite(vector).all() and float(np.abs(vector).max(initial=0.0)) <= _LARGEST:
                return vector
        return self.vector(item)

    def known(self, item: Upsert) -> tuple[tuple[int, ...], npt.NDArray[np.float32]] | None:
        """Semantic ID and text vector of an item: as the log has them, else computed now; None where neither goes.

        A semantic ID that the item has already stays, whatever the log says.

        Raises:
            InputError: there is nothing in the item's words, or the log's codes are none of this tokenizer.
        """
        vector = self.read(item)
        if vector is None:
            return None
        encoded = item.encoded
        if encoded is None or encoded.tokenizer != self.placement.version or not encoded.codes:
            encoded = self.place(item.item_id, vector)
        return self.placement.take(item.item_id, encoded.codes), vector


def load_item_encoder(bundle: Bundle, retrieval: Retrieval | None) -> ItemEncoder:
    """The encoder of new items.

    Args:
        bundle: opened.
        retrieval: its indexes, with the text encoder.

    Raises:
        DataError: the bundle does not hold the tokenizer with all semantic IDs that were given.
        ConfigError: the tokenizer reads other vectors than those of texts.
    """
    artefact = Artefact.load(bundle.path / "tokenizer")
    if artefact.version != bundle.manifest.tokenizer_version or artefact.sizes != bundle.codebook_sizes:
        raise DataError(
            f"the semantic IDs of the bundle are of tokenizer {bundle.manifest.tokenizer_version}",
            field="tokenizer_version",
            value=artefact.version,
            remedy="publish the bundle again",
        )
    if artefact.settings.source == "collaborative" and artefact.source.ridge is None:
        raise ConfigError(
            "semantic IDs of collaboration alone say nothing of an item that nobody has used",
            field="semantic_ids.source",
            value=artefact.settings.source,
            remedy="build them with source fused or text, or with fill predicted",
        )
    encoder = None if retrieval is None else retrieval.encoder
    if encoder is not None and not _same_encoder(bundle, artefact.description.get("text") or {}):
        encoder = None
    return ItemEncoder(Placement(artefact), encoder, bundle.text.shape[1])


def _same_encoder(bundle: Bundle, job: dict[str, Any]) -> bool:
    """Whether the index's encoder is the one whose vectors the tokenizer was built on."""
    spec = load_json(bundle.path / RETRIEVAL / "retrieval.json")["encoder"]
    hashing = spec["model"] == "hashing"
    same = hashing if job.get("hashing") else (not hashing and job.get("model") == spec["fingerprint"])
    read = hashing or (job.get("max_tokens") == spec["max_tokens"] and job.get("bfloat16") == spec["bfloat16"])
    return bool(same and read and spec["dimension"] == bundle.text.shape[1])
