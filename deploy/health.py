"""Health check of a container: `windfire-health TARGET` ends with 0 if it answers.

TARGET is an http:// address that must answer 200, or the path of an engine's Unix socket, from which the engine's
greeting must come; `{slot}` in it is what `windfire-slot` wrote down.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

SECONDS: Final = 2.0
TOLD: Final = "SLOT_FILE"
DEFAULT_TOLD: Final = "/tmp/windfire-slot"  # noqa: S108 - the container's own


def check(target: str) -> None:
    """Ask once.

    Raises:
        OSError: nobody answers in time, or not as somebody who is well.
    """
    if "{slot}" in target:
        target = target.replace("{slot}", Path(os.environ.get(TOLD, DEFAULT_TOLD)).read_text())
    if target.startswith("http://"):
        _check_http(target)
    else:
        _check_socket(target)


def _check_http(target: str) -> None:
    parts = urlsplit(target)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {error!r}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise OSError(f"status {status}")


def _check_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(SECONDS)
        asked.connect(path)
        if not asked.recv(4096):  # the greeting is read, so that the engine sees a clean end
            raise OSError("hung up")


def main(arguments: list[str]) -> int:
    """Exit status: 0 well, 1 not, 2 asked wrongly; the reason goes to standard error, where Docker keeps it."""
    if len(arguments) != 1:
        sys.stderr.write("usage: windfire-health TARGET\n")
        return 2
    try:
        check(arguments[0])
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
