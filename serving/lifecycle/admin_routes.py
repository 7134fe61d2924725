"""The routes that move CURRENT and say when every worker has followed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import structlog
from fastapi import APIRouter, Depends
from starlette.responses import Response

from recsys.bundle.pointers import CANARY, SHADOW, read_share
from recsys.bundle.promotion import promote, roll_back
from recsys.bundle.registry import Registry
from recsys.errors import GateError, InputError, WindfireError
from serving.errors import (
    FORBIDDEN,
    MALFORMED,
    TOO_LARGE,
    UNAVAILABLE,
    Problem,
    documented,
    envelope,
    json_response,
)
from serving.lifecycle.admin_schemas import BundlesAnswer, MovedAnswer, ReloadRequest, RollbackRequest
from serving.lifecycle.admin_scope import admin_scope
from serving.lifecycle.workers import live_workers
from serving.services import Services, services_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.lifecycle.workers import WorkerReport

_LOOK: Final = 0.05  # seconds between two looks at the workers' reports
_NEWEST: Final = 100
_log = structlog.stdlib.get_logger(__name__)

UNKNOWN_VERSION: Final = Problem(404, "unknown_version", False, "The registry does not have this version.")
GATE_REFUSED: Final = Problem(
    409, "gate_refused", False, "The bundle measures worse than the served one; `force` with a reason serves it."
)
BAD_BUNDLE: Final = Problem(409, "bad_bundle", False, "The bundle or a pointer of the registry is damaged.")
NOTHING_BEFORE: Final = Problem(409, "nothing_before", False, "There is no version before the current one.")
WORKERS_MISSING: Final = Problem(
    504, "workers_missing", True, "CURRENT is set, but these workers do not run it: they refuse it, or are not done."
)

_MOVING: Final = (
    MALFORMED, TOO_LARGE, FORBIDDEN, UNKNOWN_VERSION, BAD_BUNDLE, NOTHING_BEFORE, WORKERS_MISSING, UNAVAILABLE,
)  # fmt: skip
router = APIRouter(dependencies=[Depends(admin_scope)])
ServicesOf = Annotated[Services, Depends(services_of)]


@router.get(
    "/v1/admin/bundles",
    response_model=BundlesAnswer,
    responses=documented(BAD_BUNDLE, FORBIDDEN, UNAVAILABLE),
    tags=["administration"],
)
async def bundles(services: ServicesOf) -> Response:
    """Say which versions there are, which are served, and who runs what."""
    try:
        return json_response(await asyncio.to_thread(_state, services.settings.registry))
    except InputError as error:
        return envelope(BAD_BUNDLE, error.message)


@router.post(
    "/v1/admin/bundles/reload",
    response_model=MovedAnswer,
    responses=documented(GATE_REFUSED, *_MOVING),
    tags=["administration"],
)
async def reload(body: ReloadRequest, services: ServicesOf) -> Response:
    """Serve a version if the quality gate lets it pass; answer when every worker does."""
    registry = Registry(services.settings.registry)
    wanted = body.version

    def move() -> tuple[str, str | None]:
        if wanted is None:
            return _set_again(registry), None
        return wanted, str(promote(registry, wanted, services.settings.gate, reason=body.force))

    return await _moved(registry, move, _patience(body.wait_seconds, services))


@router.post(
    "/v1/admin/bundles/rollback",
    response_model=MovedAnswer,
    responses=documented(*_MOVING),
    tags=["administration"],
)
async def rollback(body: RollbackRequest, services: ServicesOf) -> Response:
    """Serve an earlier version, whatever it measures; answer when every worker does."""
    registry = Registry(services.settings.registry)
    return await _moved(
        registry, lambda: (roll_back(registry, body.version), None), _patience(body.wait_seconds, services)
    )


def _patience(asked: float | None, services: Services) -> float:
    return services.settings.reload_timeout.total_seconds() if asked is None else asked


async def _moved(registry: Registry, move: Callable[[], tuple[str, str | None]], patience: float) -> Response:
    """Move CURRENT, then wait for the workers."""
    try:
        before = await asyncio.to_thread(_current_or_none, registry)
        version, verdict = await asyncio.to_thread(move)
    except GateError as error:
        return envelope(GATE_REFUSED, error.message, field="body.version")
    except InputError as error:
        problem = NOTHING_BEFORE if error.field == "current" else UNKNOWN_VERSION
        return envelope(problem, error.message, field=None if problem is NOTHING_BEFORE else "body.version")
    except WindfireError as error:
        return envelope(BAD_BUNDLE, error.message)
    _log.info("current_moved", version=version, previous=before, verdict=verdict)
    stamp = await asyncio.to_thread(registry.stamp)
    workers = await _followed(registry.root, version, stamp, patience)
    missing = [_missing(worker, version, stamp) for worker in workers if worker.bundle != version]
    if missing or not workers:
        return envelope(WORKERS_MISSING, f"{version} is set; " + ("; ".join(missing) or "no worker reports"))
    shown = [_shown(worker) for worker in workers]
    return json_response({"version": version, "previous": before, "verdict": verdict, "workers": shown})


async def _followed(root: Path, version: str, stamp: str, patience: float) -> list[WorkerReport]:
    """The reports when every worker runs a version, or has said that it will not, or time is up."""
    end = time.monotonic() + patience
    while True:
        workers = await asyncio.to_thread(live_workers, root)
        settled = [worker.bundle == version or worker.refuses(version, stamp) for worker in workers]
        if (workers and all(settled)) or time.monotonic() >= end:
            return workers
        await asyncio.sleep(_LOOK)


def _set_again(registry: Registry) -> str:
    """Point CURRENT to what it names, so that workers which refused it try at once."""
    with registry.exclusive():
        version = registry.current()
        if version is None:
            raise InputError("the registry is empty", field="current", value=None, remedy="publish a bundle first")
        registry.point_to(version)
    return version


def _current_or_none(registry: Registry) -> str | None:
    try:
        return registry.current()
    except InputError:  # a pointer that somebody spoiled is what this call mends
        return None


def _missing(worker: WorkerReport, version: str, stamp: str) -> str:
    if worker.refuses(version, stamp):
        return f"{worker.name} refuses it: {worker.refused}"
    return f"{worker.name} runs {worker.bundle}"


def _shown(worker: WorkerReport) -> dict[str, Any]:
    return {
        "name": worker.name,
        "bundle_version": worker.bundle,
        "canary_version": worker.canary,
        "shadow_version": worker.shadow,
        "refused_version": worker.refused_version,
        "refused": worker.refused,
        "beside_refused": worker.beside_refused,
    }


def _state(root: Path) -> dict[str, Any]:
    registry = Registry(root)
    shares = {pointer.lower(): read_share(registry, pointer) for pointer in (CANARY, SHADOW)}
    return {
        "current": registry.current(),
        **{name: None if share is None else asdict(share) for name, share in shares.items()},
        "versions": registry.versions()[-_NEWEST:],
        "workers": [_shown(worker) for worker in live_workers(root)],
    }
