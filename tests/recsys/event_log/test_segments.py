from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import CorruptionError, InputError, UnavailableError
from recsys.event_log import EventLog, Exposure, ExposureLog, SegmentLog, read_events, read_records


def event(number: int, **changes: object) -> dict[str, object]:
    base = {"event_id": f"e{number}", "user_id": "u", "item_id": "i", "time": number, "action": "click"}
    return {**base, **changes}


@settings(max_examples=25)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=8), st.integers(1, 120))
def test_what_was_appended_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]], segment: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = SegmentLog(directory, segment_bytes=segment, flush=lambda _: None)
    for group in groups:
        log.append(group)
    log.close()
    flat = [payload for group in groups for payload in group]
    reopened = SegmentLog(directory, segment_bytes=segment)
    assert [payload for _, payload in reopened.read()] == flat
    assert [number for number, _ in reopened.read(len(flat) // 2)] == list(range(len(flat) // 2, len(flat)))
    assert reopened.append([b"next"]) == range(len(flat), len(flat) + 1)
    reopened.close()


def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    log.append([b"one", b"two"])
    log.close()
    file = next(tmp_path.glob("*.log"))
    file.write_bytes(file.read_bytes()[:-1])
    reopened = SegmentLog(tmp_path)
    assert [payload for _, payload in reopened.read()] == [b"one"]
    assert reopened.cut_bytes == 10
    reopened.append([b"three"])
    assert [payload for _, payload in reopened.read()] == [b"one", b"three"]
    reopened.close()


def test_a_flipped_byte_before_the_end_names_the_file(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    log.append([b"one", b"two"])
    log.close()
    file = next(tmp_path.glob("*.log"))
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match=file.name):
        list(read_records(tmp_path))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    with pytest.raises(UnavailableError, match="another process"):
        SegmentLog(tmp_path)
    log.close()
    SegmentLog(tmp_path).close()


def test_segments_rotate_and_old_ones_can_go(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=10)
    for number in range(5):
        log.append([bytes([number]) * 8])
    assert len(list(tmp_path.glob("*.log"))) == 5
    assert log.truncate_before(3) == 3
    assert [number for number, _ in log.read(3)] == [3, 4]
    with pytest.raises(InputError, match="start at 3"):
        list(log.read(0))
    log.close()


def test_concurrent_appenders_share_flushes(tmp_path: Path) -> None:
    flushed: list[int] = []
    gate = threading.Event()

    def flush(handle: int) -> None:
        gate.wait(10)
        os.fsync(handle)
        flushed.append(handle)

    log = SegmentLog(tmp_path, flush=flush)
    threads = [threading.Thread(target=log.append, args=([bytes([n])],)) for n in range(16)]
    for thread in threads:
        thread.start()
    while len(log) < 16:
        pass
    gate.set()
    for thread in threads:
        thread.join()
    assert len(list(log.read())) == 16
    assert len(flushed) <= 2
    log.close()


def test_an_oversized_record_is_refused_whole(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    with pytest.raises(InputError, match="payload"):
        log.append([b"small", bytes(17 << 20)])
    assert list(log.read()) == []
    log.close()


def test_a_repeated_event_id_is_not_written_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.append([event(1), event(2), event(1)]) == [0, 1, None]
    log.close()
    reopened = EventLog(tmp_path)
    assert reopened.append([event(2), event(3)]) == [None, 2]
    assert [(number, row["event_id"], row["seq"]) for number, row in read_events(tmp_path)] == [
        (0, "e1", 0),
        (1, "e2", 1),
        (2, "e3", 2),
    ]
    reopened.close()


def test_the_idempotency_window_is_bounded(tmp_path: Path) -> None:
    log = EventLog(tmp_path, remembered=2)
    log.append([event(1), event(2), event(3)])
    assert log.append([event(1), event(3)]) == [3, None]
    log.close()


def test_exposures_come_back_as_written(tmp_path: Path) -> None:
    exposure = Exposure(
        request_id="r",
        user_id=None,
        time=1,
        scene="home",
        items=["a"],
        positions=[0],
        scores=[-1.5],
        sources=["nezha"],
        propensities=[1.0],
        served_by="nezha",
        decoder="nezha",
        bundle_version="b",
        catalog_version="b.0",
        arms={},
    )
    log = ExposureLog(tmp_path)
    log.append([exposure])
    assert list(log.read()) == [(0, exposure)]
    log.close()


WRITER = """
import sys
from pathlib import Path
from recsys.event_log import SegmentLog
log = SegmentLog(Path(sys.argv[1]), segment_bytes=2000)
for number in range(10**9):
    log.append([str(number).encode() * 3])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_kill_minus_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(300)]
    os.kill(writer.pid, signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged += [int(line) for line in rest.split("\n")[:-1]]
    log = SegmentLog(tmp_path)
    kept = [payload for _, payload in log.read()]
    assert kept[: len(acknowledged)] == [str(number).encode() * 3 for number in acknowledged]
    log.close()
