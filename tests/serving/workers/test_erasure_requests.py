"""What a worker finds in its folder of erasures may vanish or be damaged at any moment."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson

from serving.settings import Settings
from serving.workers.neighbours import Neighbours


def test_what_vanishes_or_is_damaged_stops_no_later_erasure(tmp_path: Path) -> None:
    state = tmp_path / "worker-0"
    folder = state / "erasures"
    folder.mkdir(parents=True)
    (folder / "0.done").symlink_to(folder / "taken")  # found, and gone when it is looked at
    (folder / "1.json").symlink_to(folder / "taken")
    (folder / "2.json").write_bytes(b"{")
    (folder / "3.json").write_bytes(orjson.dumps({"part": "event", "user_id": "ann"}))
    emptied: list[str] = []
    done = folder / "3.done"

    async def scenario() -> None:
        neighbours = Neighbours(Settings(state=state, workers=2))
        answering = asyncio.create_task(neighbours.answer(lambda part, user: len(part + user), emptied.append))
        ends = time.monotonic() + 20
        while not done.exists() and not answering.done():
            assert time.monotonic() < ends
            await asyncio.sleep(0.01)
        assert not answering.done()
        answering.cancel()

    asyncio.run(scenario())
    assert (orjson.loads(done.read_bytes()), emptied) == ({"erased": len("eventann")}, ["ann"])
