"""Keeps the tables of the fallback at the bundle that the engine runs, and at the end of the catalogue log."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from recsys.bundle.promotion import served_before
from recsys.bundle.registry import Registry
from recsys.catalog.log import CatalogLog
from serving.ladder.fallback import load_tables
from serving.workers.folders import shared_state

if TYPE_CHECKING:
    from serving.engine import Engine, EngineKeeper
    from serving.ladder.fallback import Fallback
    from serving.settings import Settings

_EVERY: Final = 0.5  # seconds between two looks; answers look for themselves
_LONGEST_PAUSE: Final = 60.0  # seconds between two tries of a bundle that cannot be opened
_log = structlog.stdlib.get_logger(__name__)


class FallbackKeeper:
    """Looks what the engine runs; while that cannot be asked, at the registry's CURRENT.

    Args:
        settings: registry, catalogue log, state.
        engine: whose bundle is wanted.
        keeper: says whether the engine can be reached; None where the engine was given.
        fallback: gets the tables.
    """

    def __init__(self, settings: Settings, engine: Engine, keeper: EngineKeeper | None, fallback: Fallback) -> None:
        self._registry = Registry(settings.registry)
        self._log = CatalogLog(settings.catalog_directory)
        self._markers = shared_state(settings) / "verified"
        self._engine, self._keeper, self._fallback = engine, keeper, fallback
        self._tried: str | None = None
        self._pause, self._again = _EVERY, 0.0

    async def look(self) -> None:
        """Open another bundle if the engine runs one, and follow the catalogue; never raises for a bad bundle."""
        try:
            version = await asyncio.to_thread(self._wanted)
            loaded = self._fallback.loaded
            if version is not None and (loaded is None or loaded.version != version) and self._due(version):
                await self._load(version)
                self._tried = None
            elif loaded is not None:
                await self._fallback.in_thread(loaded.follow)
                loaded.memory.follow()  # so that its next answer has little to read
        except Exception as error:  # noqa: BLE001 - whatever a bundle holds, the one before answers on
            _log.warning("tables_refused", error=str(error))
            await self._load_earlier()

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            await self.look()

    async def _load(self, version: str) -> None:
        load = partial(load_tables, self._registry, version, markers=self._markers, log=self._log)
        self._fallback.swap(await asyncio.to_thread(load))
        _log.info("tables_loaded", version=version)

    async def _load_earlier(self) -> None:
        """What was served before the version that was refused, where there is nothing else to answer with."""
        earlier = await asyncio.to_thread(served_before, self._registry, self._tried)
        while earlier and self._fallback.loaded is None:
            try:
                await self._load(earlier.pop(0))
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("tables_refused", error=str(error))

    def _wanted(self) -> str | None:
        versions, keeper = self._engine.versions, self._keeper
        if versions is not None:
            return versions.bundle
        return self._registry.current() if keeper is not None and keeper.trouble else None

    def _due(self, version: str) -> bool:
        """Whether a version is new, or was refused long enough ago."""
        now = time.monotonic()
        if version != self._tried:
            self._tried, self._pause = version, _EVERY
        elif now < self._again:
            return False
        self._again = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True
