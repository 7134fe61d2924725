"""Items that come and go: a thread that writes changes into the catalogue log at a steady rate."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from recsys.catalog.changes import Delete, Encoded, Expire, Stock, Upsert
from recsys.catalog.log import CatalogLog

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from recsys.bundle import Bundle
    from recsys.catalog.changes import Change

_EVERY: Final = 0.05  # seconds between two groups of changes, each with one flush
_NEW_SHARE: Final = 0.1  # so many new items, over those of the snapshot, come and go
_HORIZON: Final = 2_000_000  # microseconds within which an item expires or begins
_KINDS: Final = ("back", "expire", "stock", "delete", "new")
_WEIGHTS: Final = (0.45, 0.25, 0.1, 0.1, 0.1)


class Changer:
    """Writes until its block ends.

    Args:
        directory: of the log.
        bundle: whose items change.
        per_second: changes.
        seed: of what changes.

    Attributes:
        log: that is written; another process's view reads the same.
        end: sequence number behind the last change that is acknowledged.
        written: changes.
        seconds: that it ran.
    """

    def __init__(self, directory: Path, bundle: Bundle, per_second: int, seed: int) -> None:
        self.log = CatalogLog(directory)
        self.first = self.end = bundle.manifest.catalog_sequence
        self.written = 0
        self.seconds = 0.0
        self._bundle, self._per_second = bundle, per_second
        self._rng = np.random.default_rng(seed)
        self._known: set[str] = set()  # new items that were written
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="changer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._fault is not None and error is None:
            raise self._fault

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while not self._stop.wait(max(0.0, began + self.written / self._per_second - time.monotonic())):
                group = [self._change() for _ in range(max(1, round(self._per_second * _EVERY)))]
                with self.log.writing() as writer:
                    writer.append(group)
                    self.end = writer.end
                self.written += len(group)
                self.seconds = time.monotonic() - began
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            self._fault = error

    def _change(self) -> Change:
        rng, now, count = self._rng, time.time_ns() // 1_000, self._bundle.manifest.items
        kind = _KINDS[int(rng.choice(len(_KINDS), p=_WEIGHTS))]
        (item,) = self._bundle.item_ids.ids(np.array([rng.integers(count)]))
        match kind:
            case "expire":
                return Expire(item_id=item, time=now, until=now + int(rng.integers(_HORIZON)))
            case "stock":
                return Stock(item_id=item, time=now, stock=int(rng.integers(3)))
            case "delete":
                return Delete(item_id=item, time=now)
            case "new":
                return self._new(now)
            case _:
                begins = now + int(rng.integers(_HORIZON)) if rng.random() < 0.1 else None
                return Upsert(item_id=item, time=now, title="back again", brand="Brand 1", available_from=begins)

    def _new(self, now: int) -> Change:
        """A new item with the semantic ID and the vector of a known one; the next time it goes or comes back."""
        rng, bundle = self._rng, self._bundle
        item = f"new-{int(rng.integers(max(1, round(bundle.manifest.items * _NEW_SHARE)))):08d}"
        if item in self._known:
            return Delete(item_id=item, time=now) if rng.random() < 0.5 else Upsert(item_id=item, time=now, title="new")
        self._known.add(item)
        like = int(rng.integers(bundle.manifest.items))
        encoded = Encoded(
            tokenizer=bundle.manifest.tokenizer_version,
            codes=tuple(bundle.codes[like].tolist()),
            text=np.asarray(bundle.text[like], dtype="<f4").tobytes(),
        )
        return Upsert(item_id=item, time=now, title="new", available_until=now + 10**9, encoded=encoded)
