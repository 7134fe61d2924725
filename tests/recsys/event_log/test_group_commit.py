from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from recsys.errors import InputError, UnavailableError
from recsys.event_log import ConsumerOffsets, SegmentLog


class GatedDisk:
    """Flushes really, but only while its gate is open, and counts."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.flushes = 0
        self.gate.set()

    def flush(self, file: int) -> None:
        self.reached.set()
        assert self.gate.wait(10)
        os.fsync(file)
        self.flushes += 1

    def close_gate(self) -> None:
        self.flushes = 0
        self.reached.clear()
        self.gate.clear()


def in_threads(work: Callable[[int], object], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def test_threads_that_append_while_the_disk_flushes_share_the_next_flush(tmp_path: Path) -> None:
    disk = GatedDisk()
    log = SegmentLog(tmp_path, flush=disk.flush)
    disk.close_gate()
    first = log.submit([b"first"])
    assert disk.reached.wait(10)
    numbers: list[int] = []
    threads = in_threads(lambda n: numbers.extend(log.append([bytes([n]), bytes([n])])), 32)
    wait_until(lambda: len(log._writer._waiting) == 32)
    assert not first.done()
    assert log.end == 0, "nothing is durable yet"
    assert list(log.read()) == []
    disk.gate.set()
    for thread in threads:
        thread.join()
    assert disk.flushes == 2
    assert sorted(numbers) == list(range(1, 65))
    records = [payload for _, payload in log.read(1)]
    assert records[::2] == records[1::2], "the records of one append are neighbours"
    log.close()


def test_tasks_share_flushes_and_do_not_block_the_loop(tmp_path: Path) -> None:
    disk = GatedDisk()
    log = SegmentLog(tmp_path, flush=disk.flush)

    async def main() -> list[range]:
        disk.close_gate()
        appends = [asyncio.create_task(log.append_async([b"x"])) for _ in range(64)]
        await asyncio.sleep(0.02)  # the loop goes on while the disk does not
        assert not any(append.done() for append in appends)
        disk.gate.set()
        return await asyncio.gather(*appends)

    numbers = asyncio.run(main())
    assert sorted(number for append in numbers for number in append) == list(range(64))
    assert disk.flushes <= 2
    log.close()


def test_a_cancelled_task_does_not_take_others_with_it(tmp_path: Path) -> None:
    disk = GatedDisk()
    log = SegmentLog(tmp_path, flush=disk.flush)

    async def main() -> range:
        disk.close_gate()
        gone = asyncio.create_task(log.append_async([b"gone"]))
        stays = asyncio.create_task(log.append_async([b"stays"]))
        await asyncio.sleep(0)
        gone.cancel()
        disk.gate.set()
        return await stays

    assert asyncio.run(main()) == range(1, 2)
    log.close()
    assert [payload for _, payload in log.read()] == [b"gone", b"stays"]


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    disk = GatedDisk()
    log = SegmentLog(tmp_path, flush=disk.flush)
    disk.close_gate()
    waiting = [log.submit([bytes([n])]) for n in range(10)]
    disk.gate.set()
    log.close()
    assert [append.result() for append in waiting] == [range(n, n + 1) for n in range(10)]


def test_after_a_failed_flush_nothing_is_acknowledged_until_the_log_is_opened_again(tmp_path: Path) -> None:
    failing = threading.Event()

    def flush(file: int) -> None:
        os.fsync(file if not failing.is_set() else -1)

    log = SegmentLog(tmp_path, flush=flush)
    log.append([b"good"])
    failing.set()
    with pytest.raises(UnavailableError, match="could not be written"):
        log.append([b"lost"])
    failing.clear()
    with pytest.raises(UnavailableError, match="a flush of the log failed"):
        log.append([b"after"])
    log.close()
    reopened = SegmentLog(tmp_path)
    assert reopened.append([b"again"]) == range(1, 2)
    assert [payload for _, payload in reopened.read()] == [b"good", b"again"]
    reopened.close()


def test_a_write_that_the_disk_refuses_is_taken_back(tmp_path: Path, full_disk: AbstractContextManager[None]) -> None:
    log = SegmentLog(tmp_path)
    log.append([b"good"])
    with full_disk, pytest.raises(UnavailableError, match="No space left"):
        log.append([b"lost"])
    assert log.append([b"again"]) == range(1, 2)
    assert [payload for _, payload in log.read()] == [b"good", b"again"]
    log.close()


def test_offsets_survive_and_belong_to_one_consumer_each(tmp_path: Path) -> None:
    offsets = ConsumerOffsets(tmp_path / "offsets")
    assert offsets.get("history") == 0
    offsets.commit("history", 7)
    offsets.commit("spark-1", 3)
    offsets.commit("history", 9)
    again = ConsumerOffsets(tmp_path / "offsets")
    assert (again.get("history"), again.get("spark-1"), again.get("other")) == (9, 3, 0)


@pytest.mark.parametrize(("name", "offset"), [("../up", 1), ("", 1), (".hidden", 1), ("a/b", 1), ("fine", -1)])
def test_an_impossible_offset_is_refused(tmp_path: Path, name: str, offset: int) -> None:
    with pytest.raises(InputError):
        ConsumerOffsets(tmp_path).commit(name, offset)
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_cannot_begin_is_refused_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SegmentLog(tmp_path, segment_bytes=1)
    log.append([b"good"])

    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(UnavailableError, match="Too many open files"):
            log.append([b"lost"])
    assert log.append([b"again"]) == range(1, 2)
    assert [payload for _, payload in log.read()] == [b"good", b"again"]
    log.close()
