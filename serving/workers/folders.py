"""Where workers keep what they write down; logs and offsets have one writer each."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recsys.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving.settings import Settings


def worker_settings(settings: Settings, number: int) -> Settings:
    """The settings of one worker: those of the whole, with a state folder of its own, `worker-<number>`."""
    return settings.model_copy(update={"state": settings.state / f"worker-{number}"})


def states_with_logs(state: Path) -> list[Path]:
    """A server's state folder and those of its workers, as far as they hold logs; the first alone where none does."""
    found = [each for each in (state, *sorted(state.glob("worker-*"))) if (each / "events").is_dir()]
    return found or [state]


def shared_state(settings: Settings) -> Path:
    """The state folder of all workers, given the settings of one; that of the server where there are none."""
    return settings.state if settings.workers == 1 else settings.state.parent


def metrics_folder(settings: Settings) -> Path:
    """Where all workers count, given the settings of the whole."""
    return settings.state / "metrics"


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold a state folder for one parent.

    Raises:
        OSError: the folder cannot be written.
        UnavailableError: another parent has it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "parent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                "another server has this state", field="state", value=str(state), remedy="give each server its own"
            ) from None
        yield


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
