"""Answers without the model: from a bundle's tables, which a front-end maps for itself, and the catalogue log."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from recsys.bundle.manifest import verify_once
from recsys.catalog.log import CatalogLog
from recsys.errors import UnavailableError
from serving.ladder.memory import Memory
from serving.stages import BundleRecommender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from recsys.bundle.registry import Registry
    from serving.engine import EngineAnswer, EngineRequest, SlateItem

T = TypeVar("T")
_READ: Final = ("catalog/", "items.parquet", "popularity/", "item_to_item/")  # files of a bundle that are read
_FEW: Final = 1_000  # records that the memory reads itself, in the event loop: it goes on where it stopped reading
_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What answers without the model.

    Attributes:
        recommender: without decoder and indexes.
        memory: the last tier.
    """

    recommender: BundleRecommender
    memory: Memory

    @property
    def version(self) -> str:
        """Of the bundle."""
        return self.recommender.versions.bundle

    def follow(self) -> None:
        """Apply what the catalogue log has by now."""
        items = self.recommender.items
        with items.guard:
            items.try_to_follow()
            few = 0 if self.memory.trouble else _FEW
            if self.memory.sequence + few < items.sequence:
                self.memory.refresh(items)

    def answer(self, request: EngineRequest, kept: Sequence[SlateItem]) -> EngineAnswer:
        """See `BundleRecommender.without_model`."""
        self.follow()
        return self.recommender.without_model(request, kept)


def load_tables(registry: Registry, version: str, *, markers: Path, log: CatalogLog) -> Loaded:
    """Open the tables of a bundle, with what the catalogue log has since.

    Args:
        registry: where the bundle is.
        version: which.
        markers: directory that remembers which files were verified on this host; the model's are not looked at.
        log: of the catalogue.

    Raises:
        WindfireError: the bundle is missing or corrupt, or the log is another one's.
    """
    bundle = registry.open(version, verify=False, markers=markers)
    files = {name: entry for name, entry in bundle.manifest.files.items() if name.startswith(_READ)}
    verify_once(bundle.path, files, markers)
    recommender = BundleRecommender(bundle, None, beam=1, log=log)
    recommender.items.follow()
    memory = Memory(bundle, recommender.everything, recommender.items, CatalogLog(log.directory))
    return Loaded(recommender, memory)


class Fallback:
    """Answers in a thread of its own, and from memory where that thread has no time or fails.

    Args:
        minimum: seconds that must be left for the thread to be asked.
        clock: monotonic seconds.
    """

    def __init__(self, *, minimum: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._minimum, self._clock = minimum, clock
        self._loaded: Loaded | None = None
        self._thread = ThreadPoolExecutor(1, "windfire-fallback")

    @property
    def loaded(self) -> Loaded | None:
        """What answers; None before the first bundle."""
        return self._loaded

    def swap(self, loaded: Loaded) -> None:
        """Answer from this from now on."""
        self._loaded = loaded

    async def answer(self, request: EngineRequest, kept: Sequence[SlateItem] = (), *, until: float) -> EngineAnswer:
        """Answer, whatever happens.

        Args:
            request: asks no index.
            kept: items to show first, see `BundleRecommender.without_model`.
            until: monotonic seconds by which the answer should be there.

        Raises:
            UnavailableError: no bundle was ever opened.
        """
        loaded = self._loaded
        if loaded is None:
            raise UnavailableError("no bundle is loaded")
        left = until - self._clock()
        if left >= self._minimum:
            try:
                async with asyncio.timeout(left):
                    return await self.in_thread(lambda: loaded.answer(request, kept))
            except TimeoutError:
                pass
            except Exception:  # noqa: BLE001 - the last tier needs nothing of what failed
                _log.exception("fallback_failed")
        return loaded.memory.answer(request)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Call in the thread; a call that nobody waits for any more is not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
