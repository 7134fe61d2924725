"""From item ids to item indices and back, without a Python object per item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

MAX_ID_BYTES = 256
"""Longest item id in UTF-8; all keys of an index have the width of its longest one."""


class ItemIndex:
    """The catalog's item ids in byte order; an item's index is the rank of its id.

    The ids are one array of fixed-width bytes, so that the index can be memory-mapped and shared between
    processes, and a look-up is a vectorised binary search: 0.3 ms for 1,000 ids among 12,000, 0.7 ms among 10^6.

    Args:
        keys: (I,) bytes, dtype S<width>, strictly increasing.
    """

    __slots__ = ("keys",)

    def __init__(self, keys: npt.NDArray[np.bytes_]) -> None:
        self.keys = keys

    @classmethod
    def build(cls, ids: Iterable[str]) -> ItemIndex:
        """Make the index of ids that are already in byte order.

        Raises:
            DataError: an id is empty, too long, holds NUL, is out of order or stands twice.
        """
        encoded = [item.encode() for item in ids]
        for key in encoded:
            if not key or b"\0" in key or len(key) > MAX_ID_BYTES:
                raise DataError(
                    f"an item id must have 1 to {MAX_ID_BYTES} bytes in UTF-8 and no NUL",
                    field="item_id",
                    value=key.decode(),
                    remedy="rename the item in the source and import it again",
                )
        keys = np.array(encoded, dtype=np.bytes_) if encoded else np.empty(0, dtype="S1")
        wrong = np.flatnonzero(keys[1:] <= keys[:-1])
        if wrong.size:
            raise DataError(
                "item ids must stand in byte order, each once",
                field="item_id",
                value=encoded[int(wrong[0]) + 1].decode(),
                remedy="run `windfire offline run` again: item_index is the rank of item_id",
            )
        return cls(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def lookup(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """The indices of item ids.

        Args:
            ids: n item ids, any order, repeats allowed.

        Returns:
            (n,) int32; -1 for an id that is not in the catalog.
        """
        if not len(self.keys) or not len(ids):
            return np.full(len(ids), -1, dtype=np.int32)
        # JSON can carry lone surrogates; they encode to bytes that no stored id has.
        encoded = [item.encode("utf-8", "surrogatepass") for item in ids]
        wanted = np.array(encoded, dtype=self.keys.dtype)
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = self.keys[place]
        # The cast to the fixed width cuts long ids and trailing NULs, therefore the lengths are compared too.
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        known = (found == wanted) & (np.strings.str_len(found) == lengths)
        return np.where(known, place, -1).astype(np.int32)

    def ids(self, indices: npt.NDArray[np.integer]) -> list[str]:
        """The item ids at indices 0 <= index < I, in the order given."""
        return [key.decode() for key in self.keys[indices].tolist()]
