"""From the registry's CURRENT to a running bundle: at the start and whenever it changes."""

from __future__ import annotations

import asyncio
import time
import weakref
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import torch

from recsys.bundle.loading import load_decoder, load_indexes
from recsys.bundle.promotion import served_before
from recsys.bundle.registry import Registry
from recsys.catalog.log import CatalogLog
from recsys.decoding.added import ColdPrior
from recsys.event_log import GroupWriter
from serving.catalog_intake import CatalogIntake
from serving.lifecycle.companions import Companions
from serving.lifecycle.deployment import Deployment
from serving.lifecycle.metrics import LifecycleMetrics
from serving.lifecycle.recent import RecentRequests
from serving.lifecycle.retries import Retries
from serving.lifecycle.warm_up import smoke, warm_up
from serving.lifecycle.workers import BEAT, Reporter
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
    from serving.lifecycle.warm_up import WarmUp
    from serving.live_items import LiveItems
    from serving.metrics import EngineMetrics
    from serving.settings import Settings

_WAITING: Final = 1_000  # changes of items
_FOLLOW: Final = 0.5  # seconds between two looks into the catalogue log while nobody asks
_SAVE: Final = 30.0  # seconds between two writes of the recent requests
_log = structlog.stdlib.get_logger(__name__)


def load_recommender(
    registry: Registry,
    version: str,
    *,
    decoder: str,
    engine: str,
    beam: int,
    small_beam: int | None = None,
    markers: Path,
    retrieval: bool = True,
    search: bool = True,
    vllm_url: str = "",
    vllm_timeout: timedelta = timedelta(seconds=1),
    log: CatalogLog | None = None,
    cold: ColdPrior | None = None,
) -> BundleRecommender:
    """Verify and load a bundle, and look at what it answers to a few requests.

    Args:
        registry: where the bundle is.
        version: which.
        decoder: its name, or `auto`.
        engine: see `recsys.backends.choose_engine`.
        beam: prefixes kept per level.
        small_beam: the same where the full beam would be late; None = never fewer.
        markers: directory that remembers which files were verified on this host.
        retrieval: whether to open the bundle's indexes.
        search: whether to load the text encoder that belongs to them.
        vllm_url: a vLLM server that runs the bundle's model; empty for none.
        vllm_timeout: of its answers.
        log: of the catalogue; what it holds behind the bundle's snapshot is applied first.
        cold: the declared prior of new items.

    Raises:
        WindfireError: the bundle is missing, corrupt, cannot answer or answers wrongly.
    """
    bundle = registry.open(version, markers=markers)
    chosen: Decoder
    if vllm_url:
        chosen = VllmDecoder.of(bundle, vllm_url, timeout=vllm_timeout, decoder=decoder)
    else:
        chosen = load_decoder(bundle, None if decoder == "auto" else decoder, engine=engine)
    indexes = load_indexes(bundle, encoder=search) if retrieval else None
    recommender = BundleRecommender(
        bundle, chosen, beam=beam, small_beam=small_beam, retrieval=indexes, log=log, cold=cold
    )
    recommender.items.follow()
    smoke(recommender, bundle.catalog.index.ids(bundle.popular(None)[:3]))
    return recommender


class BundleWatcher:
    """Keeps an engine at the registry's CURRENT, and beside it what CANARY and SHADOW name.

    A bundle is verified, loaded, tried on a few requests and on those that were recorded, and only then put in. One
    that fails any of this is refused and the one before answers on; a process that has none yet loads the one that was
    served before. The refused one is tried again after a pause that
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
        self._lifecycle = LifecycleMetrics(metrics.registry)
        self._log = CatalogLog(settings.catalog_directory)
        self._changes = GroupWriter("windfire-items", CatalogIntake(self._log, self._items).write, limit=_WAITING)
        self._main: BundleRecommender | None = None
        self._retries = Retries(settings.bundle_poll.total_seconds())
        self._recent = RecentRequests(settings.state / "recent_requests.msgpack", settings.warmup_requests)
        self._companions = Companions(settings, self._registry, engine, self._lifecycle)
        self._reporter = Reporter(settings.registry)
        self.trouble: str | None = None  # an engine of this process can always be asked

    @property
    def refused(self) -> str | None:
        """Why CURRENT could not be loaded; None = it was, or there is none."""
        return self._retries.refused

    async def look(self) -> None:
        """Load what the pointers name, unless it runs or was refused a moment ago; never raises for a bad bundle."""
        await self._report()
        changed = await self._follow_current()
        if self._main is not None:
            deploy = partial(self._deploy, self._main)
            beside = await self._companions.look(self._main.versions.bundle, self._load, deploy)
            if changed or beside:
                deploy()
        await self._report()

    async def watch(self, every: timedelta, then: Callable[[], None] = lambda: None) -> None:
        """Look again and again, each time followed by a call, until cancelled; meanwhile follow the catalogue."""
        beside = asyncio.create_task(self._attend())
        try:
            while True:
                await asyncio.sleep(every.total_seconds())
                await self.look()
                then()
        finally:
            beside.cancel()
            with suppress(asyncio.CancelledError):
                await beside

    async def change(self, change: ItemChange) -> ItemChanged:
        """See `serving.item_changes.Changes`; who gives up leaves the change to be made."""
        changed = await asyncio.shield(asyncio.wrap_future(self._changes.submit(change)))
        if isinstance(changed, Exception):
            raise changed
        return changed

    def close(self) -> None:
        """Write what waits; nothing is reported any more."""
        self._changes.close()
        self._companions.close()
        self._recent.save()
        self._reporter.close()

    async def figures(self) -> bytes:
        """See `serving.engine.EngineKeeper`."""
        return self._metrics.render()

    def _items(self) -> LiveItems | None:
        return None if self._main is None else self._main.items

    async def _follow_current(self) -> bool:
        """Whether another version was loaded."""
        version: str | None = None
        try:
            stamp = await asyncio.to_thread(self._registry.stamp)  # first: what is set behind it is another one
            version = await asyncio.to_thread(self._registry.current)
            if version is None:
                return False
            if self._main is not None and self._main.versions.bundle == version:
                self._retries.forget()  # what was refused before is tried at once when it is set again
                return False
            if not self._retries.due(version, stamp):
                return False
            recommender = self._companions.running(version) or await self._load(version)
        except Exception as error:  # noqa: BLE001 - whatever a bundle holds, the watcher goes on
            news = self._retries.failed(error)
            if news:
                _log.error("bundle_refused", version=version, error=str(error))
                self._metrics.reloads.labels("refused").inc()
            tried = news or version is not None  # else CURRENT names nothing still, which has no pauses
            return self._main is None and tried and await self._load_earlier(version)
        self._retries.forget()
        self._exchange(recommender, version)
        return True

    async def _load_earlier(self, refused: str | None) -> bool:
        """Whether one that was served before was loaded: a process that starts has nothing else to answer with."""
        for version in await asyncio.to_thread(served_before, self._registry, refused):
            try:
                recommender = await self._load(version)
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("earlier_bundle_refused", version=version, error=str(error))
            else:
                self._exchange(recommender, version)
                return True
        return False

    async def _load(self, version: str) -> BundleRecommender:
        """Load a version and let it answer the recorded requests."""
        started = time.perf_counter()
        recommender, warmed = await asyncio.to_thread(self._loaded, version)
        taken = round(time.perf_counter() - started, 3)
        _log.info(
            "bundle_warmed_up", version=version, seconds=taken, answered=warmed.answered, left_out=warmed.left_out
        )
        return recommender

    def _loaded(self, version: str) -> tuple[BundleRecommender, WarmUp]:
        settings = self._settings
        torch.set_num_threads(settings.torch_threads)  # of this thread: the one that answers keeps its cores
        self._log.settle()
        recommender = load_recommender(
            self._registry,
            version,
            decoder=settings.decoder,
            engine=settings.engine,
            beam=settings.beam,
            small_beam=settings.small_beam,
            markers=shared_state(settings) / "verified",
            retrieval=settings.retrieval,
            search=settings.search,
            vllm_url=settings.vllm_url,
            vllm_timeout=settings.vllm_timeout,
            log=self._log,
            cold=ColdPrior(settings.cold_penalty, settings.cold_lift),
        )
        recorded = self._recent.recorded(time.time_ns() // 1_000)
        return recommender, warm_up(recommender, recorded, seconds=settings.warmup_time.total_seconds())

    def _exchange(self, recommender: BundleRecommender, version: str) -> None:
        """Let a loaded version answer; `_deploy` follows."""
        before, self._main = self._main, recommender
        if before is not None:
            self._metrics.bundle.remove(before.versions.bundle)
            gone = before.versions.bundle
            weakref.finalize(before, _log.info, "bundle_released", version=gone).atexit = False
        self._metrics.bundle.labels(version).set(1)
        self._metrics.reloads.labels("loaded").inc()
        self._deploy(recommender)
        _log.info("bundle_loaded", version=version)

    def _deploy(self, main: BundleRecommender) -> None:
        companions = self._companions
        deployment = Deployment(
            main,
            canary=companions.canary,
            shadow=companions.shadow,
            recent=self._recent,
            metrics=self._lifecycle,
        )
        self._engine.swap(deployment)

    async def _attend(self) -> None:
        """Follow the catalogue, give signs of life and save recent requests, also while a bundle loads."""
        report = save = time.monotonic()
        while True:
            await asyncio.sleep(_FOLLOW)
            if self._main is not None:
                await asyncio.to_thread(self._main.items.try_to_follow)
            if time.monotonic() - report >= BEAT:
                report = time.monotonic()
                await self._report()
            if time.monotonic() - save >= _SAVE:
                save = time.monotonic()
                await asyncio.to_thread(self._recent.save)

    async def _report(self) -> None:
        versions = self._engine.versions
        refused = self._retries.refused
        await asyncio.to_thread(
            self._reporter.say,
            bundle=None if versions is None else versions.bundle,
            canary=None if versions is None else versions.canary,
            shadow=None if versions is None else versions.shadow,
            refused_version=self._retries.version if refused else None,
            refused_stamp=self._retries.stamp if refused else None,
            refused=refused,
            beside_refused=self._companions.refused,
        )
