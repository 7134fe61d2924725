"""From the registry's CURRENT to a running bundle: at the start and whenever it changes."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from recsys.bundle.loading import load_decoder, load_indexes
from recsys.bundle.registry import Registry
from recsys.catalog.log import CatalogLog
from recsys.decoding.added import ColdPrior
from recsys.event_log import GroupWriter
from serving.catalog_intake import CatalogIntake
from serving.engine import EngineRequest, Seek
from serving.stages import BundleRecommender
from serving.vllm_decoder import VllmDecoder
from serving.workers.folders import shared_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from pathlib import Path

    from recsys.decoding.decoder import Decoder
    from serving.engine import InProcessEngine
    from serving.item_changes import ItemChange, ItemChanged
    from serving.live_items import LiveItems
    from serving.metrics import EngineMetrics
    from serving.settings import Settings

CATALOG_LOG: Final = "catalog_log"
"""Folder of the catalogue log in a registry, unless the settings name another."""

_WAITING: Final = 1_000  # changes of items
_LONGEST_PAUSE: Final = 300.0  # seconds; a try reads the whole bundle
_log = structlog.stdlib.get_logger(__name__)


def load_recommender(
    registry: Registry,
    version: str,
    *,
    decoder: str,
    engine: str,
    beam: int,
    markers: Path,
    retrieval: bool = True,
    search: bool = True,
    vllm_url: str = "",
    vllm_timeout: timedelta = timedelta(seconds=1),
    log: CatalogLog | None = None,
    cold: ColdPrior | None = None,
) -> BundleRecommender:
    """Verify and load a bundle, and let it answer once.

    Args:
        registry: where the bundle is.
        version: which.
        decoder: its name, or `auto`.
        engine: see `recsys.backends.choose_engine`.
        beam: prefixes kept per level.
        markers: directory that remembers which files were verified on this host.
        retrieval: whether to open the bundle's indexes.
        search: whether to load the text encoder that belongs to them.
        vllm_url: a vLLM server that runs the bundle's model; empty for none.
        vllm_timeout: of its answers.
        log: of the catalogue; what it holds behind the bundle's snapshot is applied first.
        cold: the declared prior of new items.

    Raises:
        WindfireError: the bundle is missing, corrupt or cannot answer.
    """
    bundle = registry.open(version, markers=markers)
    chosen: Decoder
    if vllm_url:
        chosen = VllmDecoder.of(bundle, vllm_url, timeout=vllm_timeout, decoder=decoder)
    else:
        chosen = load_decoder(bundle, None if decoder == "auto" else decoder, engine=engine)
    indexes = load_indexes(bundle, encoder=search) if retrieval else None
    recommender = BundleRecommender(bundle, chosen, beam=beam, retrieval=indexes, log=log, cold=cold)
    recommender.items.follow()
    history = bundle.catalog.index.ids(bundle.popular(None)[:3])
    now = time.time_ns() // 1_000
    sought = (None, *(Seek(item_id=item) for item in history[:1]), Seek(text="anything"))
    recommender.recommend([EngineRequest(history=history, n=10, time=now, seek=seek) for seek in sought])
    return recommender


class BundleWatcher:
    """Keeps an engine at the registry's CURRENT.

    A bundle that cannot be loaded is refused and the one before answers on. It is tried again after a pause that
    doubles each time, because memory, a mount or a repaired file may have been all that was missing.

    Args:
        settings: registry, decoder, beam, how often to look.
        engine: gets every new bundle.
        metrics: counts reloads.
    """

    def __init__(self, settings: Settings, engine: InProcessEngine, metrics: EngineMetrics) -> None:
        self._settings = settings
        self._registry = Registry(settings.registry)
        self._engine = engine
        self._metrics = metrics
        self._log = CatalogLog(settings.catalog_log or settings.registry / CATALOG_LOG)
        self._changes = GroupWriter("windfire-items", CatalogIntake(self._log, self._items).write, limit=_WAITING)
        self._tried: str | None = None
        self._pause = self._again = 0.0  # seconds, and when on the monotonic clock
        self.refused: str | None = None
        self.trouble: str | None = None  # an engine of this process can always be asked

    async def look(self) -> None:
        """Load CURRENT if another version runs and it was not refused a moment ago; never raises for a bad bundle."""
        version: str | None = None
        try:
            version = await asyncio.to_thread(self._registry.current)
            if version is None or self._settled(version):
                return
            if version != self._tried:
                self._tried, self._pause = version, self._settings.bundle_poll.total_seconds()
            await self._put_in(version)
        except Exception as error:  # noqa: BLE001 - whatever a bundle holds, the watcher goes on
            if self.refused != str(error):
                _log.error("bundle_refused", version=version, error=str(error))
                self._metrics.reloads.labels("refused").inc()
            self.refused = str(error)
            self._again = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def watch(self, every: timedelta, then: Callable[[], None] = lambda: None) -> None:
        """Look again and again, each time followed by a call, until cancelled."""
        while True:
            await asyncio.sleep(every.total_seconds())
            await self.look()
            then()

    async def change(self, change: ItemChange) -> ItemChanged:
        """See `serving.item_changes.Changes`; who gives up leaves the change to be made."""
        changed = await asyncio.shield(asyncio.wrap_future(self._changes.submit(change)))
        if isinstance(changed, Exception):
            raise changed
        return changed

    def close(self) -> None:
        """Write what waits."""
        self._changes.close()

    def _items(self) -> LiveItems | None:
        recommender = self._engine.recommender
        return recommender.items if isinstance(recommender, BundleRecommender) else None

    async def figures(self) -> bytes:
        """See `serving.engine.EngineKeeper`."""
        return self._metrics.render()

    def _settled(self, version: str) -> bool:
        """Whether a version runs already or was refused a moment ago."""
        running = self._engine.versions
        if running is not None and running.bundle == version:
            self.refused = self._tried = None  # what was refused before is tried at once when it is set again
            return True
        return version == self._tried and time.monotonic() < self._again

    async def _put_in(self, version: str) -> None:
        settings = self._settings
        started = time.perf_counter()
        await asyncio.to_thread(self._log.settle)
        recommender = await asyncio.to_thread(
            load_recommender,
            self._registry,
            version,
            decoder=settings.decoder,
            engine=settings.engine,
            beam=settings.beam,
            markers=shared_state(settings) / "verified",
            retrieval=settings.retrieval,
            search=settings.search,
            vllm_url=settings.vllm_url,
            vllm_timeout=settings.vllm_timeout,
            log=self._log,
            cold=ColdPrior(settings.cold_penalty, settings.cold_lift),
        )
        before = self._engine.versions
        self._engine.swap(recommender)
        self.refused = None
        if before is not None:
            self._metrics.bundle.remove(before.bundle)
        self._metrics.bundle.labels(version).set(1)
        self._metrics.reloads.labels("loaded").inc()
        _log.info("bundle_loaded", version=version, seconds=round(time.perf_counter() - started, 3))
