"""What a key costs per request: CPU of the middleware with and without a key file.

python -m benchmarks.key_check
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys.storage import write_bytes_atomically
from serving.metrics import Metrics
from serving.security.auth import Authenticate
from serving.security.keys import KeyRing, Scope, encode_keys, new_key

if TYPE_CHECKING:
    from starlette.types import Message

_KEYS: Final = 200
_REQUESTS: Final = 20_000
_ROUNDS: Final = 7
_OTHERS: Final = [(b"host", b"shop"), (b"user-agent", b"bench"), (b"accept", b"*/*"), (b"content-length", b"20")]


async def _nothing(*_: Any) -> None:
    """The application behind the middleware."""


async def _no_message() -> Message:
    return {}


def microseconds(guard: Authenticate, key: str) -> float:
    """CPU microseconds per request, of the fastest round."""
    headers = [*_OTHERS, (b"authorization", f"Bearer {key}".encode())]

    async def ask() -> None:
        for _ in range(_REQUESTS):
            scope = {"type": "http", "path": "/v1/recommend", "method": "POST", "headers": headers}
            await guard(scope, _no_message, _nothing)

    rounds = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        asyncio.run(ask())
        rounds.append((time.process_time() - began) / _REQUESTS * 1e6)
    return min(rounds)


def main() -> None:
    """Measure and print."""
    pairs = [new_key(f"key-{n}", (Scope.RECOMMEND,), rate=1e9, burst=10**9) for n in range(_KEYS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        write_bytes_atomically(path, encode_keys([stored for stored, _ in pairs]), mode=0o600)
        for name, ring in (("open", None), (f"{_KEYS} keys", KeyRing(path))):
            guard = Authenticate(_nothing, ring=ring, metrics=Metrics())
            print(f"{name}: {microseconds(guard, pairs[_KEYS // 2][1]):.2f} us of CPU per request")  # noqa: T201


if __name__ == "__main__":
    main()
