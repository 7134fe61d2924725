"""How far each consumer of a log has come."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final

from recsys.errors import InputError
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class ConsumerOffsets:
    """One small file per consumer, replaced atomically and flushed; one process commits for one consumer.

    Args:
        directory: created by the first commit.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = threading.Lock()

    def get(self, name: str) -> int:
        """Number of the next record that the consumer wants; 0 before its first commit."""
        path = self._path(name)
        return int(read_json(path)["offset"]) if path.exists() else 0

    def commit(self, name: str, offset: int) -> None:
        """Remember that everything before `offset` is done; a smaller offset than before makes it be read again.

        Raises:
            InputError: the name cannot be a file's name, or the offset is negative.
        """
        path = self._path(name)
        if offset < 0:
            raise InputError("an offset is not negative", field="offset", value=offset, remedy="0 is the first record")
        with self._writing:
            write_json_atomically(path, {"offset": offset})

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(
                "a consumer's name is made of letters, digits, '-' and '_'",
                field="name",
                value=name,
                remedy="use at most 100 of them, beginning with a letter or a digit",
            )
        return self._directory / f"{name}.json"
