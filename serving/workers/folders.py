"""Where workers keep what they write down; logs and offsets have one writer each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from serving.settings import Settings


def worker_settings(settings: Settings, number: int) -> Settings:
    """The settings of one worker: those of the whole, with a state folder of its own, `worker-<number>`."""
    return settings.model_copy(update={"state": settings.state / f"worker-{number}"})


def shared_state(settings: Settings) -> Path:
    """The state folder of all workers, given the settings of one; that of the server where there are none."""
    return settings.state if settings.workers == 1 else settings.state.parent


def check_workers(settings: Settings) -> None:
    """See that several workers can serve the same users.

    Raises:
        ConfigError: each would have histories of its own, so that a user's next request finds another history.
    """
    if settings.workers > 1 and not settings.history_store.get_secret_value():
        raise ConfigError(
            f"{settings.workers} workers must share the histories of users",
            field="WINDFIRE_HISTORY_STORE",
            value="",
            remedy="name a store that all of them reach: lmdb:DIRECTORY on this machine, or a redis:// address",
        )
