"""Features on LMDB: one file, any number of reading processes, one writer at a time, durable when a write returns."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import lmdb

from feature_store.encoding import supersedes
from feature_store.reading import TAIL, Reason, keys_of, missing, readings_of
from feature_store.store import now_micros, prepare_merge, prepare_write
from recsys.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from feature_store.reading import Reading, Wanted
    from feature_store.store import Merge, Prepared, Write
    from feature_store.views import View

_MAP_BYTES: Final = 64 << 30  # address space, not disk
_MAX_READERS: Final = 512
_FOLD_BYTES: Final = 4096  # a page of the file: a longer tail costs as much to append to as to fold
_SWEPT: Final = 10_000  # keys per transaction


class EmbeddedFeatureStore:
    """`FeatureStore` on the disk of one machine; see there.

    A call's writes are one transaction: all or none of them, one flush. A process opens a directory once, and not
    before it forks. A deadline is looked at between keys: a page that the disk does not bring cannot be given up on.

    Args:
        path: directory, created where absent.
        map_bytes: largest size of the file.
        clock: now, in UTC microseconds.
    """

    def __init__(self, path: Path, *, map_bytes: int = _MAP_BYTES, clock: Callable[[], int] = now_micros) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._clock = clock
        self._environment = lmdb.open(str(path), map_size=map_bytes, max_readers=_MAX_READERS)
        self._environment.reader_check()  # a killed reader would keep old pages from being used again

    @property
    def epoch(self) -> int:
        """See `FeatureStore.epoch`: what was acknowledged is on the disk."""
        return 0

    def put(self, writes: Sequence[Write]) -> list[bool]:
        """See `FeatureStore.put`."""
        now = self._clock()
        prepared = [prepare_write(write, now) for write in writes]
        return self._write(prepared)

    def merge(self, merges: Sequence[Merge]) -> None:
        """See `FeatureStore.merge`."""
        now = self._clock()
        self._write([prepare_merge(merge, now) for merge in merges])

    def read(self, wanted: Sequence[Wanted], *, deadline: float | None = None) -> list[Reading]:
        """See `FeatureStore.read`; all of it is of one moment."""
        ends = None if deadline is None else time.monotonic() + deadline
        with self._environment.begin(buffers=True) as transaction:
            if ends is None:
                return readings_of(wanted, map(transaction.get, keys_of(wanted)), self._clock())
            return self._read_until(transaction, wanted, ends)

    def sweep(self, views: Iterable[View]) -> int:
        """Remove the keys of these views that hold nothing that is kept any longer; returns how many.

        Redis does this by itself. Run it now and then, beside any reader or writer.
        """
        now, removed = self._clock(), 0
        by_suffix = {f"}}:{view.name}:{view.version}".encode(): view for view in views}
        for batch in self._batches():
            with self._environment.begin(write=True) as transaction:
                for key in batch:
                    view = by_suffix.get(key[key.rfind(b"}") :].removesuffix(TAIL))
                    removed += view is not None and _remove_if_gone(transaction, view, key.removesuffix(TAIL), now)
        return removed

    def close(self) -> None:
        """Close the file."""
        self._environment.close()

    def _read_until(self, transaction: Any, wanted: Sequence[Wanted], ends: float) -> list[Reading]:
        now, readings = self._clock(), []
        for one in wanted:
            if time.monotonic() > ends:
                readings.append(missing(Reason.DEADLINE))
            else:
                readings += readings_of([one], map(transaction.get, keys_of([one])), now)
        return readings

    def _write(self, prepared: Sequence[Prepared | None]) -> list[bool]:
        if not any(prepared):
            return [False] * len(prepared)
        try:
            with self._environment.begin(write=True) as transaction:
                return [one is not None and _apply(transaction, one) for one in prepared]
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise UnavailableError(f"the feature store takes no more: {error}", field="path", value=str(self._path),
                                   remedy="sweep it, give the disk room or a larger map_bytes") from None  # fmt: skip

    def _batches(self) -> Iterator[list[bytes]]:
        start = b""
        while True:
            with self._environment.begin() as transaction, transaction.cursor() as cursor:
                found = cursor.set_range(start)
                keys = [bytes(key) for key in islice(cursor.iternext(values=False), _SWEPT)] if found else []
            if not keys:
                return
            yield keys
            start = keys[-1] + b"\0"


def _apply(transaction: Any, one: Prepared) -> bool:
    if one.view.history is None:
        if not supersedes(one.raw, transaction.get(one.key)):
            return False
        transaction.put(one.key, one.raw)
        return True
    tail = (transaction.get(one.key + TAIL) or b"") + one.raw
    if len(tail) < _FOLD_BYTES and not one.erases:
        transaction.put(one.key + TAIL, tail)
        return True
    transaction.put(one.key, one.view.entries.fold(transaction.get(one.key), tail))
    transaction.delete(one.key + TAIL)
    return True


def _remove_if_gone(transaction: Any, view: View, key: bytes, now: int) -> bool:
    raws = [transaction.get(name) for name in _beside(view, key)]
    if all(raw is None for raw in raws):
        return False
    (reading,) = readings_of([(view, "")], iter(raws), now)
    if reading.reason is not Reason.ABSENT:
        return False
    for name in _beside(view, key):
        transaction.delete(name)
    return True


def _beside(view: View, key: bytes) -> list[bytes]:
    """The keys beside one of them, in the order of `keys_of`."""
    return [key] if view.history is None else [key + TAIL, key]
