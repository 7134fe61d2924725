"""Semantic IDs for items that come one by one, without a pass over all that were ever given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.catalog.index import ItemIndex
from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.semantic_ids.artefact import Artefact


class Placement:
    """What `recsys.semantic_ids.collisions.place_new` does, for one item after the other.

    Args:
        artefact: of the tokenizer version.

    Raises:
        DataError: an item id that no catalogue takes.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.version = artefact.version
        self.sizes = artefact.sizes
        self._policy = artefact.settings.collisions
        self._tokenizer, self._source = artefact.tokenizer, artefact.source
        places = np.concatenate([np.cumprod(self.sizes[-2:0:-1], dtype=np.int64)[::-1], [1]])
        self._radix = places[: len(self.sizes) - 1]  # of all codes but the last
        keys = artefact.codes[:, :-1].astype(np.int64) @ self._radix
        order = np.argsort(keys, kind="stable")
        self._keys, self._last = keys[order], artefact.codes[order, -1]
        self._ids, self._codes = ItemIndex.build(artefact.item_ids.tolist()), artefact.codes
        self._later: dict[int, list[int]] = {}  # last codes by prefix, of what was taken since
        self._known: dict[str, tuple[int, ...]] = {}

    def given(self, item_id: str) -> tuple[int, ...] | None:
        """The semantic ID that an item ever got in this version; None where it got none."""
        place = int(self._ids.lookup([item_id])[0])
        return self._known.get(item_id) if place < 0 else tuple(self._codes[place].tolist())

    def place(self, text: npt.NDArray[np.float32]) -> tuple[int, ...]:
        """The semantic ID that an item with this text vector (D_t,) would get now."""
        codes, residuals = self._tokenizer.encode(self._source.embed(text[None]))
        greedy = [int(code) for code in codes[0]]
        if self._policy == "buckets":
            return tuple(greedy)
        if self._policy == "extra_digit":
            counts = np.bincount(self._taken(greedy), minlength=self.sizes[-1])
            return (*greedy, int(counts.argmin()))
        distance = ((residuals[0] - self._tokenizer.centroids[-1]) ** 2).sum(axis=1)
        nearest = np.argsort(distance, kind="stable")
        free = nearest[~np.isin(nearest, self._taken(greedy[:-1]))]
        return (*greedy[:-1], int(free[0] if len(free) else nearest[0]))

    def take(self, item_id: str, codes: Sequence[int]) -> tuple[int, ...]:
        """Give a semantic ID away for as long as the tokenizer version lives; an item takes one only.

        Returns:
            The one that the item has.

        Raises:
            InputError: the codes are none of this tokenizer.
        """
        given = self.given(item_id)
        if given is not None:
            return given
        taken = tuple(int(code) for code in codes)
        if len(taken) != len(self.sizes) or any(
            not 0 <= code < size for code, size in zip(taken, self.sizes, strict=True)
        ):
            raise InputError(
                f"a semantic ID has one code of each codebook {self.sizes}",
                field="codes",
                value=taken,
                remedy="encode the item with the tokenizer of the bundle",
            )
        self._known[item_id] = taken
        self._later.setdefault(self._key(taken[:-1]), []).append(taken[-1])
        return taken

    def give_back(self, item_id: str) -> None:
        """Undo `take` of an item that the tokenizer did not come with; does nothing where it took nothing."""
        codes = self._known.pop(item_id, None)
        if codes is not None:
            self._later[self._key(codes[:-1])].remove(codes[-1])

    def _taken(self, prefix: Sequence[int]) -> npt.NDArray[np.int64]:
        """(m,) last codes below a prefix, each as often as it was given."""
        key = self._key(prefix)
        first, stop = np.searchsorted(self._keys, [key, key + 1])
        later = np.array(self._later.get(key, []), dtype=np.int64)
        return np.concatenate([self._last[first:stop].astype(np.int64), later])

    def _key(self, prefix: Sequence[int]) -> int:
        return int(np.asarray(prefix, dtype=np.int64) @ self._radix)
