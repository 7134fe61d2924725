"""Items that come after training, made of their texts as an upsert makes them, and the cases that hold them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.errors import DataError, InputError
from recsys.retrieval.query_encoder import encoder_of_job
from recsys.semantic_ids.artefact import Artefact
from recsys.semantic_ids.collisions import place_new
from recsys.text.item_text import item_text

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.cold_data import ColdData
    from recsys.datasets.prepared import PreparedData

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]

ABSENT: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """Later items in the order in which they are added.

    Attributes:
        rows: (n,) int64 indices in the full catalogue, ascending.
        text: (n, D_t) float32 text vectors.
        content: (n, D) float32 vectors by which semantic IDs were made; the collaborative part is guessed.
        codes: (n, L) int32 semantic IDs under the tokenizer's rule for later items.
    """

    rows: Ints
    text: Floats
    content: Floats
    codes: npt.NDArray[np.int32]


def make_later(data: ColdData, rows: Ints) -> Later:
    """Encode items by their texts alone.

    Args:
        data: what was fitted without them.
        rows: (n,) indices in the full catalogue, ascending.

    Raises:
        DataError: the text encoder of the work directory is not here.
    """
    spec = encoder_of_job(data.work, "auto")
    if spec is None:
        raise DataError(
            "the text encoder that made the items' vectors is not here",
            field="offline.text.model",
            value=str(data.work),
            remedy="take the packaged model or hashing",
        )
    encoder = spec.load(data.work)
    columns = ("title", "category_path", "brand", "text")
    values = data.full.items.select(columns).take(rows).to_pylist()
    texts = [item_text(*(value[name] for name in columns)) for value in values]
    text = np.zeros((len(rows), encoder.dimension), dtype=np.float32)
    for row, words in enumerate(texts):
        with suppress(InputError):  # no text, no vector
            text[row] = encoder.encode(words)
    content, codes = place(data.work, text)
    return Later(rows, text, content, codes)


def place(work: Path, text: Floats) -> tuple[Floats, npt.NDArray[np.int32]]:
    """The vectors (n, D) and semantic IDs (n, L) that a work directory's tokenizer gives to later items.

    Args:
        work: of the offline jobs.
        text: (n, D_t) their text vectors.
    """
    artefact = Artefact.load(work / "semantic_ids")
    content = artefact.source.embed(text)
    codes = place_new(artefact.settings.collisions, content, artefact.tokenizer, artefact.codes, artefact.sizes)
    return content, codes


def text_codes(work: Path, text: Floats) -> npt.NDArray[np.int32]:
    """(n, L) semantic IDs of later items without a guess of their collaborative part, which is then 0.

    Args:
        work: of the offline jobs.
        text: (n, D_t) their text vectors.
    """
    artefact = Artefact.load(work / "semantic_ids")
    vectors = replace(artefact.source, ridge=None).embed(text)
    return place_new(artefact.settings.collisions, vectors, artefact.tokenizer, artefact.codes, artefact.sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Cases over the trained items, 0..I-1, and the later ones behind them.

    Attributes:
        trained: I.
        histories: N arrays of int64 items, oldest first; none is empty.
        targets: (N,) int64.
        left_out: cases that name an item which is neither, or whose history holds none of them.
    """

    trained: int
    histories: list[Ints]
    targets: Ints
    left_out: int = 0

    @property
    def new_target(self) -> npt.NDArray[np.bool_]:
        """(N,) whether what is wanted is a later item."""
        return self.targets >= self.trained

    @property
    def new_history(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the history holds a later item."""
        return np.array([bool((history >= self.trained).any()) for history in self.histories], dtype=np.bool_)

    def without_new(self) -> list[Ints]:
        """N histories without the later items; may be empty."""
        return [history[history < self.trained] for history in self.histories]

    def some(self, limit: int | None) -> Cases:
        """`limit` cases spread evenly; None = all."""
        if limit is None or limit >= len(self.targets):
            return self
        rows = np.linspace(0, len(self.targets) - 1, limit).astype(np.int64)
        return Cases(self.trained, [self.histories[row] for row in rows], self.targets[rows], self.left_out)


def live_index(full: PreparedData, data: PreparedData, later: Ints) -> Ints:
    """(I_full,) the index that each item of the full catalogue has after the later ones were added; -1 without.

    Args:
        full: the whole data set.
        data: what was trained on.
        later: (n,) indices in the full catalogue, in the order of addition.
    """
    place = {item: row for row, item in enumerate(data.items["item_id"].to_pylist())}
    index = np.array([place.get(item, ABSENT) for item in full.items["item_id"].to_pylist()], dtype=np.int64)
    index[later] = len(place) + np.arange(len(later))
    return index


def cases_of(full: PreparedData, part: str, index: Ints, *, trained: int) -> Cases:
    """The cases of the full data set's `valid` or `test` part under other indices.

    Items without an index leave the histories; a case that wants one, or whose history holds nothing else, is left out.

    Args:
        full: the whole data set.
        part: `valid` or `test`.
        index: (I_full,) of `live_index`.
        trained: I.
    """
    _, histories, targets = full.sequences.targets(part)
    found = [index[history] for history in histories]
    found = [history[history != ABSENT] for history in found]
    wanted = index[targets]
    kept = [row for row, history in enumerate(found) if len(history) and wanted[row] != ABSENT]
    return Cases(trained, [found[row] for row in kept], wanted[kept], len(found) - len(kept))
