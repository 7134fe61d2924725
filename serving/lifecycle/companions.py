"""The bundles beside the served one, as the registry's CANARY and SHADOW name them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from recsys.bundle.pointers import CANARY, SHADOW, read_share
from serving.lifecycle.deployment import Canary
from serving.lifecycle.retries import Retries
from serving.lifecycle.shadow import Shadow
from serving.lifecycle.shadow_log import ShadowLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from recsys.bundle.pointers import Share
    from recsys.bundle.registry import Registry
    from serving.engine import InProcessEngine
    from serving.lifecycle.metrics import LifecycleMetrics
    from serving.settings import Settings
    from serving.stages import BundleRecommender

    Load = Callable[[str], Awaitable[BundleRecommender]]

_log = structlog.stdlib.get_logger(__name__)


class Companions:
    """Loads canary and shadow as the served bundle is loaded, warm-up and all; one that is refused is left out.

    Args:
        settings: state directory, threads, pauses.
        registry: whose pointers are followed.
        engine: whose queue says how busy it is.
        metrics: of both.

    Attributes:
        canary: runs; None = there is none.
        shadow: runs; None = there is none.
    """

    def __init__(
        self, settings: Settings, registry: Registry, engine: InProcessEngine, metrics: LifecycleMetrics
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        pause = settings.bundle_poll.total_seconds()
        self._retries = {pointer: Retries(pause) for pointer in (CANARY, SHADOW)}
        self._loaded: dict[str, BundleRecommender] = {}  # by pointer
        self.canary: Canary | None = None
        self.shadow: Shadow | None = None

    @property
    def refused(self) -> str | None:
        """Why one of them cannot be loaded."""
        found = [f"{pointer}: {each.refused}" for pointer, each in self._retries.items() if each.refused]
        return "; ".join(found) or None

    def running(self, version: str) -> BundleRecommender | None:
        """A version that is loaded already."""
        return next((each for each in self._loaded.values() if each.versions.bundle == version), None)

    async def look(self, served: str, load: Load, ended: Callable[[], None] = lambda: None) -> bool:
        """Follow both pointers; whether something changed. Never raises for a bad bundle.

        Args:
            served: the version that is served, which needs no companion of its own.
            load: loads and warms up a version.
            ended: called where one was let go, so that nobody is answered by it while another one loads.
        """
        before = self.canary, self.shadow
        for pointer in (CANARY, SHADOW):
            retries = self._retries[pointer]
            try:
                share = await asyncio.to_thread(read_share, self._registry, pointer)
                await self._follow(pointer, None if share is None or share.version == served else share, load, ended)
            except Exception as error:  # noqa: BLE001 - whatever a bundle holds, the served one goes on
                if retries.failed(error):
                    _log.error("bundle_beside_refused", role=pointer.lower(), error=str(error))
        return (self.canary, self.shadow) != before

    def close(self) -> None:
        """End the shadow's thread."""
        if self.shadow is not None:
            self.shadow.close()

    async def _follow(self, pointer: str, share: Share | None, load: Load, ended: Callable[[], None]) -> None:
        retries, running = self._retries[pointer], self._share(pointer)
        if share == running:
            if share is None:
                retries.forget()
            return
        before = self._loaded.get(pointer)
        if running is not None:
            await self._end(pointer)
            ended()
        if share is None or not retries.due(share.version):
            return
        kept = before if before is not None and before.versions.bundle == share.version else None
        recommender = kept or await load(share.version)
        if pointer == CANARY:
            self.canary = Canary(share, recommender)
        else:
            self.shadow = await asyncio.to_thread(self._make_shadow, share, recommender)
        self._loaded[pointer] = recommender
        self._metrics.beside.labels(pointer.lower(), share.version).set(1)
        retries.forget()
        _log.info("bundle_beside", role=pointer.lower(), version=share.version, share=share.share)

    def _share(self, pointer: str) -> Share | None:
        runs = self.canary if pointer == CANARY else self.shadow
        return None if runs is None else runs.share

    def _make_shadow(self, share: Share, recommender: BundleRecommender) -> Shadow:
        return Shadow(
            share,
            recommender,
            log=ShadowLog(self._settings.state),
            waiting=lambda: self._engine.waiting,
            torch_threads=self._settings.torch_threads,
            metrics=self._metrics,
        )

    async def _end(self, pointer: str) -> None:
        """Let one go; the engine may still hold it until it is given the next deployment."""
        share = self._share(pointer)
        if share is None:
            return
        self._loaded.pop(pointer, None)
        self._metrics.beside.remove(pointer.lower(), share.version)
        _log.info("bundle_beside_ended", role=pointer.lower(), version=share.version)
        if pointer == CANARY:
            self.canary = None
        elif self.shadow is not None:
            ended, self.shadow = self.shadow, None
            await asyncio.to_thread(ended.close)
