"""Give a replica a directory and a number of its own, then become its command.

`windfire-slot DIRECTORY COMMAND...`: of `DIRECTORY/0`, `1`, ... the first that no living replica holds. The claim is a
lock on a file beside it that goes over to the command and dies with it, so that the next replica finds what a dead one
has left. In the command and in the variables WINDFIRE_*, `{slot}` becomes the number, and `{engine}` the number modulo
ENGINES: front-ends share the engines evenly.
"""

from __future__ import annotations

import fcntl
import os
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

TOLD: Final = "SLOT_FILE"
DEFAULT_TOLD: Final = "/tmp/windfire-slot"  # noqa: S108 - the container's own; `windfire-health` reads it


def claim(directory: Path) -> int:
    """Lock the first free slot for this process and what it becomes.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for slot in count():
        lock = os.open(directory / f"{slot}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        os.set_inheritable(lock, True)
        return slot
    raise AssertionError


def filled(text: str, slot: int, engines: int) -> str:
    """The text with the numbers in the place of `{slot}` and `{engine}`."""
    return text.replace("{slot}", str(slot)).replace("{engine}", str(slot % engines))


def environment(given: Mapping[str, str], slot: int, engines: int) -> dict[str, str]:
    """The variables of the command."""
    return {
        name: filled(value, slot, engines) if name.startswith("WINDFIRE_") else value for name, value in given.items()
    }


def main(arguments: list[str]) -> NoReturn:
    """Claim, say the number in a file and become the command."""
    engines = os.environ.get("ENGINES", "1")
    if len(arguments) < 2 or not (engines.isascii() and engines.isdigit() and int(engines) > 0):
        sys.stderr.write(f"usage: windfire-slot DIRECTORY COMMAND..., ENGINES is a number above 0, not {engines!r}\n")
        sys.exit(2)
    slot = claim(Path(arguments[0]))
    Path(os.environ.get(TOLD, DEFAULT_TOLD)).write_text(str(slot))
    command = [filled(argument, slot, int(engines)) for argument in arguments[1:]]
    os.execvpe(command[0], command, environment(os.environ, slot, int(engines)))  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
