"""What parent and worker say to each other over the pipe between them; each message is one of these words."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Word(Enum):
    """A message."""

    PREPARED = b"prepared"  # worker: all modules are there; nothing is opened yet
    GO = b"go"  # parent: open the state and serve; whoever held it before has gone
    UP = b"up"  # worker: it takes requests
    ALIVE = b"alive"  # worker, once a second: its event loop turns
    LEAVING = b"leaving"  # worker: somebody sent it SIGTERM
    DRAIN = b"drain"  # parent: stop; the others go on
    STOP = b"stop"  # parent: stop; all do


def say(link: Connection, word: Word) -> None:
    """Send a word; an end that has gone does not hear it, and its death is noticed elsewhere.

    Where the connection does not block, neither does an end that no longer reads.
    """
    with suppress(OSError):
        link.send_bytes(word.value)


def hear(link: Connection) -> Word | None:
    """Wait for a word; None where the other end has gone."""
    try:
        return Word(link.recv_bytes())
    except (EOFError, OSError):
        return None
