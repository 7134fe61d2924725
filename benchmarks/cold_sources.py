"""What finds later items: the model over the live catalogue, nearest vectors, and both together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.bundle.loading import load_model
from recsys.decoding.added import ColdPrior
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.live_catalogue import LiveCatalogue
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.segments import Segments
from recsys.decoding.trie import SidTrie
from recsys.errors import ConfigError
from recsys.evaluation.metrics import padded_lists
from recsys.models.compact import CompactRecommender
from recsys.retrieval.settings import IndexSettings
from recsys.retrieval.vector_index import build_index
from training.recommender.trainer import item_features

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.cold_later import Later
    from recsys.datasets.prepared import PreparedData
    from training.recommender.settings import TrainSettings

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]
    Lists = npt.NDArray[np.int32]

_BATCH = 256
_PATIENCE = 60  # of reciprocal rank fusion: how slowly a rank's worth falls


class Writer:
    """The model as it was trained, over a catalogue to which later items are added.

    Args:
        run: directory of the training run.
        data: what it was trained on.
        settings: of that training.

    Attributes:
        trie: of its items.
        counts: (I,) training interactions of each.
    """

    def __init__(self, run: Path, data: PreparedData, settings: TrainSettings) -> None:
        self._model_path, self._data, self._settings = run / "model", data, settings
        self.trie = SidTrie.build(data.codes, data.codebook_sizes)
        self.counts = data.train_counts

    def decoder(self, later: Later | None = None) -> NezhaDecoder:
        """A decoder whose histories may hold the later items, which enter by their content.

        Raises:
            ConfigError: the model is not of the compact shape.
        """
        data = self._data
        model = load_model(self._model_path, item_features(data, self._settings), data.codebook_sizes)
        if not isinstance(model, CompactRecommender):
            raise ConfigError(
                "later items are measured on the compact shape",
                field="train.model.shape",
                value=model.config.shape,
                remedy="shape: compact",
            )
        model.freeze()
        decoder = NezhaDecoder(model, self.trie, prior=data.train_counts)
        if later is not None:
            decoder.add_items(later.codes, later.text)
        return decoder

    def live(self, codes: npt.NDArray[np.integer], cold: ColdPrior) -> tuple[LiveCatalogue, Segments]:
        """The catalogue after items of these semantic IDs (n, L) were added under a declared prior."""
        catalogue = LiveCatalogue(self.trie, cold=cold)
        segments = Segments(self.trie, catalogue=catalogue)
        catalogue.add(codes)
        return catalogue, segments


def written(
    decoder: NezhaDecoder,
    segments: Segments | None,
    histories: Sequence[Ints],
    hidden: Sequence[Ints],
    *,
    k: int,
    beam: int,
) -> Lists:
    """(N, k) the items that a decoder lists, -1 behind the end.

    Args:
        decoder: whose.
        segments: of the live catalogue; None = as it was frozen.
        histories: N arrays that the model reads, oldest first; may be empty.
        hidden: N arrays of items that are not listed.
        k: items per list.
        beam: width.
    """
    lists = np.empty((len(histories), k), dtype=np.int32)
    for begin in range(0, len(histories), _BATCH):
        rows = slice(begin, begin + _BATCH)
        excluded = hidden[rows]
        eligibility = Eligibility(excluded=excluded) if segments is None else segments.eligibility([], excluded)
        lists[rows] = padded_lists(decoder.decode(histories[rows], k=k, beam=beam, eligibility=eligibility).ranked, k)
    return lists


class Nearest:
    """Items near the newest of a history: a query is the sum of their vectors, each step back weighs less.

    Args:
        trained: (I, D) vectors of the items that the index is built with.
        later: (n, D) of those that are put into it afterwards.
    """

    def __init__(self, trained: Floats, later: Floats) -> None:
        self._vectors = np.concatenate([trained, later])
        self._trained = len(trained)
        held = np.flatnonzero(self._vectors.any(axis=1))
        put = held[held >= len(trained)]
        self._index = build_index(trained, IndexSettings(kind="flat"))
        if len(put):
            self._index.put(put, self._vectors[put])

    def lists(self, histories: Sequence[Ints], *, k: int, decay: float, discount: float = 0.0) -> Lists:
        """(N, k) items, without those of the history, -1 behind the end; empty where a history has no vector.

        Args:
            histories: N arrays, oldest first.
            k: items per list.
            decay: weight of an item per step back.
            discount: what a later item's cosine loses; not negative.
        """
        found = np.full((len(histories), k), -1, dtype=np.int32)
        allowed = np.ones(len(self._vectors), dtype=np.bool_)
        asked = (
            k + len(self._vectors) - self._trained if discount else k
        )  # those that fall may all stand before the rest
        for row, history in enumerate(histories):
            weights = decay ** np.arange(len(history))[::-1]
            query = weights @ self._vectors[history].astype(np.float64)
            if query.any():
                allowed[history] = False
                near = self._index.search(query, asked, allowed)
                allowed[history] = True
                scores = near.scores - discount * (near.rows >= self._trained)
                rows = near.rows[np.argsort(-scores, kind="stable")[:k]]
                found[row, : len(rows)] = rows
        return found


def merge(first: Lists, second: Lists, share: float) -> Lists:
    """(N, k) both candidates' lists as one, by reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009).

    An item is worth (1 - share) / (60 + rank) of the first list and share / (60 + rank) of the second; at equal worth
    the smaller index goes first.

    Args:
        first: (N, k), -1 behind the end.
        second: (N, k).
        share: of the second list, 0..1.
    """
    places = np.arange(1, first.shape[1] + 1)
    merged = np.full_like(first, -1)
    for row, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        items, at = np.unique(np.concatenate([mine, theirs]), return_inverse=True)
        worth = np.concatenate([(1 - share) / (_PATIENCE + places), share / (_PATIENCE + places)])
        total = np.bincount(at, weights=worth)
        total[items < 0] = -np.inf
        order = np.lexsort((items, -total))[: first.shape[1]]
        merged[row, : len(order)] = np.where(np.isneginf(total[order]), -1, items[order])
    return merged
