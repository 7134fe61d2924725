from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import CorruptionError, InputError, UnavailableError
from recsys.event_log import SegmentLog, SegmentReader, read_records

HEADER_BYTES = 12
PAYLOADS = [b"one", b"two", b"three"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The only segment of a closed log of PAYLOADS."""
    log = SegmentLog(tmp_path)
    log.append(PAYLOADS)
    log.close()
    (segment,) = tmp_path.glob("*.log")
    return segment


def reopen(segment: Path) -> tuple[int, list[bytes]]:
    log = SegmentLog(segment.parent)
    log.append([b"next"])
    found = [payload for _, payload in log.read()]
    log.close()
    return log.cut_bytes, found


@settings(max_examples=25)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=8), st.integers(1, 200))
def test_what_was_appended_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]], segment_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = SegmentLog(directory, segment_bytes=segment_bytes, flush=lambda _: None)
    numbers = [number for group in groups for number in log.append(group)]
    log.close()
    flat = [payload for group in groups for payload in group]
    assert numbers == list(range(len(flat)))
    reopened = SegmentLog(directory, segment_bytes=segment_bytes, flush=lambda _: None)
    assert reopened.cut_bytes == 0
    assert reopened.end == len(flat)
    for start in range(len(flat) + 1):
        assert list(reopened.read(start)) == list(enumerate(flat))[start:]
    assert reopened.append([b"next"]) == range(len(flat), len(flat) + 1)
    reopened.close()


def test_a_crash_at_any_byte_leaves_the_whole_records(written: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = written.read_bytes()
    ends = [HEADER_BYTES + 3, 2 * (HEADER_BYTES + 3), 3 * HEADER_BYTES + 11]
    assert len(data) == ends[-1]
    for length in range(len(data) + 1):
        segment = tmp_path_factory.mktemp("cut") / written.name
        segment.write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        assert reopen(segment) == (length - [0, *ends][whole], [*PAYLOADS[:whole], b"next"])


def test_zeros_that_the_file_system_left_behind_are_cut(written: Path) -> None:
    written.write_bytes(written.read_bytes() + bytes(4_000))
    assert list(read_records(written.parent)) == list(enumerate(PAYLOADS))
    assert reopen(written) == (4_000, [*PAYLOADS, b"next"])


def test_any_flipped_byte_before_the_last_record_is_found(written: Path) -> None:
    data = written.read_bytes()
    last = 2 * (HEADER_BYTES + 3)
    for index in range(last):
        written.write_bytes(data[:index] + bytes([data[index] ^ 0x40]) + data[index + 1 :])
        with pytest.raises(CorruptionError, match=rf"{written} .*offset = {index - index % (last // 2)}\b"):
            list(read_records(written.parent))
        with pytest.raises(CorruptionError, match=written.name):
            SegmentLog(written.parent)
    written.write_bytes(data)
    assert reopen(written) == (0, [*PAYLOADS, b"next"])


def test_a_flipped_byte_in_an_older_segment_is_never_taken_for_a_crash(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=1)
    for payload in PAYLOADS:
        log.append([payload])
    log.close()
    oldest = min(tmp_path.glob("*.log"))
    oldest.write_bytes(oldest.read_bytes()[:-1])
    reader = read_records(tmp_path)
    with pytest.raises(CorruptionError, match=oldest.name):
        next(reader)
    assert list(read_records(tmp_path, 1)) == [(1, b"two"), (2, b"three")]


def test_a_missing_segment_is_noticed(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=1)
    for payload in PAYLOADS:
        log.append([payload])
    log.close()
    sorted(tmp_path.glob("*.log"))[1].unlink()
    with pytest.raises(CorruptionError, match="the next segment begins with 2"):
        list(read_records(tmp_path))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    with pytest.raises(UnavailableError, match="another writer"):
        SegmentLog(tmp_path)
    script = (
        "import sys; from pathlib import Path; from recsys.event_log import SegmentLog; SegmentLog(Path(sys.argv[1]))"
    )
    other = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "another writer has this log open" in other.stderr
    log.close()
    SegmentLog(tmp_path).close()


def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(UnavailableError, match="closed"):
        log.append([b"late"])


def test_segments_rotate_and_old_ones_can_go(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path, segment_bytes=HEADER_BYTES + 8)
    for number in range(5):
        log.append([bytes([number]) * 8])
    names = [f"{number:020d}.log" for number in range(5)]
    assert sorted(path.name for path in tmp_path.glob("*.log")) == names
    assert log.truncate_before(3) == 3
    assert log.start == 3
    assert [number for number, _ in log.read(3)] == [3, 4]
    assert log.truncate_before(99) == 1, "the segment that is written stays"
    with pytest.raises(InputError, match="start at 4 or later"):
        list(log.read(0))
    log.close()
    reopened = SegmentLog(tmp_path)
    assert (reopened.start, reopened.end) == (4, 5)
    reopened.close()


def test_a_start_behind_the_end_is_an_error_not_an_empty_log(written: Path) -> None:
    assert list(read_records(written.parent, 3)) == []
    with pytest.raises(InputError, match="ends before this record"):
        list(read_records(written.parent, 4))


def test_two_readers_follow_a_writer(tmp_path: Path) -> None:
    early = SegmentReader(tmp_path / "log")
    assert list(early.read()) == []
    log = SegmentLog(tmp_path / "log", segment_bytes=100)
    late = SegmentReader(tmp_path / "log")
    seen: list[tuple[int, bytes]] = []
    for number in range(40):
        log.append([str(number).encode()])
        seen += early.read(len(seen))
        assert list(islice(late.read(number // 2), 1)) == [(number // 2, str(number // 2).encode())]
    assert seen == [(number, str(number).encode()) for number in range(40)]
    log.close()


def test_a_reader_that_comes_again_does_not_read_the_segment_from_its_beginning(written: Path) -> None:
    reader = SegmentReader(written.parent)
    assert len(list(reader.read())) == 3
    data = bytearray(written.read_bytes())
    data[0] ^= 1
    written.write_bytes(data)
    assert list(reader.read(3)) == []
    with pytest.raises(CorruptionError):
        list(reader.read(2))


def test_an_oversized_record_is_refused_whole(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path)
    with pytest.raises(InputError, match="payload"):
        log.append([b"small", bytes(17 << 20)])
    assert list(log.read()) == []
    log.close()


WRITER = """
import sys, threading
from pathlib import Path
from recsys.event_log import SegmentLog
log = SegmentLog(Path(sys.argv[1]), segment_bytes=2000)
answering = threading.Lock()
def work(worker):
    for number in range(10**9):
        (place,) = log.append([f"{worker}-{number}".encode() * 3])
        with answering:
            print(place, f"{worker}-{number}", flush=True)
for worker in range(4):
    threading.Thread(target=work, args=(worker,)).start()
"""


def test_kill_minus_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    lines = [writer.stdout.readline() for _ in range(300)]
    beside = dict(read_records(tmp_path))
    os.kill(writer.pid, signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged = [line.split() for line in [*lines, *rest.split("\n")[:-1]]]
    log = SegmentLog(tmp_path)
    kept = dict(log.read())
    assert len({place for place, _ in acknowledged}) == len(acknowledged)
    assert [kept[int(place)] for place, _ in acknowledged] == [text.encode() * 3 for _, text in acknowledged]
    assert beside.items() <= kept.items()
    assert list(kept) == list(range(log.end))
    log.close()
