"""What the routes share: one typed object, made when the application starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from starlette.requests import Request  # FastAPI reads the annotation when it runs

from serving.schemas import Readiness
from serving.security.user_data import UserData

if TYPE_CHECKING:
    from recsys.event_log import EventLog, Exposure, GroupWriter
    from serving.engine import Engine, EngineKeeper
    from serving.histories import Histories
    from serving.ladder.ladder import Ladder
    from serving.metrics import Metrics
    from serving.schemas import EventResult, EventRow
    from serving.security.keys import KeyRing
    from serving.settings import Settings


@dataclass(slots=True)
class Services:
    """One application's parts.

    Attributes:
        settings: as given to `create_app`.
        metrics: of this application.
        engine: answers recommendations.
        histories: of users.
        event_log: takes the events.
        events: writes batches of rows durably, then into the histories.
        exposures: writes what was answered.
        keeper: of the engine; None where the engine was given.
        ladder: answers by the best tier that can.
        draining: SIGTERM was received.
        keys: that are taken; None: no key is asked for.
        users: all that is held of single users, to be forgotten or handed over.
    """

    settings: Settings
    metrics: Metrics
    engine: Engine
    histories: Histories
    event_log: EventLog
    events: GroupWriter[list[EventRow], list[EventResult]]
    exposures: GroupWriter[Exposure, None]
    keeper: EngineKeeper | None
    ladder: Ladder
    draining: bool = False
    keys: KeyRing | None = None
    users: UserData = field(default_factory=UserData)

    async def figures(self) -> bytes:
        """What /metrics shows."""
        return self.metrics.render(await self.keeper.figures() if self.keeper else b"")

    def readiness(self, *, details: bool = True) -> Readiness:
        """Whether requests should be sent here.

        Args:
            details: whether reasons and warnings say more than their first word; they may name files and directories.
        """
        versions, keeper = self.engine.versions, self.keeper
        refused, trouble = (keeper.refused, keeper.trouble) if keeper else (None, None)
        reasons = ["draining"] if self.draining else []
        warnings = [f"bundle_refused: {refused}"] if refused and versions else []
        if trouble:
            spared = self.settings.ready_without_engine and self.ladder.has_tables
            (warnings if spared else reasons).append(trouble)
        elif versions is None:
            reasons.append(f"bundle_refused: {refused}" if refused else "no_bundle: the registry is empty")
        if self.event_log.records.failed:
            warnings.append("event_log_failed: events are refused until a restart; look for errors of the disk")
        if self.histories.behind:
            warnings.append("histories_behind: the feature store does not take events; they are durable and follow")
        if self.keys is not None and self.keys.trouble is not None:
            warnings.append(f"keys_refused: {self.keys.trouble}")
        return Readiness(
            ready=not reasons,
            reasons=reasons if details else [_word(reason) for reason in reasons],
            warnings=warnings if details else [_word(warning) for warning in warnings],
            bundle_version=versions.bundle if versions else None,
            catalog_version=versions.catalog if versions else None,
            decoder=versions.decoder if versions else None,
            canary_version=versions.canary if versions else None,
            shadow_version=versions.shadow if versions else None,
        )


def _word(text: str) -> str:
    return text.partition(":")[0]


class State(TypedDict):
    """What the lifespan hands to every request."""

    services: Services


async def services_of(request: Request) -> Services:
    """The application's services; a FastAPI dependency."""
    services: Services = request.state.services
    return services
