"""The socket's path: one engine at a time, private to its user."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from recsys.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIELD: Final = "WINDFIRE_ENGINE_SOCKET"
_LONGEST: Final = 107  # bytes of a path that the kernel takes


@contextmanager
def claimed(path: Path) -> Iterator[socket.socket]:
    """Bind a socket of mode 0600 that does not listen yet; at the end the path is free again.

    A lock in a file beside it says who owns the path, and dies with its process: a socket that a killed engine left
    behind is replaced, even where two engines start at once.

    Raises:
        ConfigError: the path is too long, or something else than a socket is there.
        UnavailableError: somebody listens there.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise ConfigError(
            f"the path is over the {_LONGEST} bytes that a Unix socket may have",
            field=FIELD,
            value=str(path),
            remedy="choose a shorter one, below /run for instance",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path) from None
        with _bound(path) as bound:
            yield bound
    finally:
        os.close(lock)


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    _make_way(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(path))
        try:
            path.chmod(0o600)  # nobody can have connected: it does not listen
            bound.setblocking(False)
            yield bound
        finally:
            path.unlink(missing_ok=True)


def _make_way(path: Path) -> None:
    """Remove what a dead engine has left."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            "something else than a socket is there", field=FIELD, value=str(path), remedy="choose another"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # many wait already to be let in
            pass
    raise _taken(path)


def _taken(path: Path) -> UnavailableError:
    return UnavailableError(
        "another process listens on this socket", field=FIELD, value=str(path), remedy="end it, or choose another path"
    )
