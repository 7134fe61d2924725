"""An import's memory does not grow with the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ROWS, REPEATED = 250_000, 10_000
ALLOWED = 5 << 20

IMPORT_TWICE = """
import json, resource, sys
from pathlib import Path
from recsys.datasets.importing import Limits, import_dataset

limits = Limits(block_bytes=256 << 10, partition_bytes=1 << 20, row_group_rows=8_192)
peaks, rows = [], []
for source in sys.argv[1:]:
    report = import_dataset("csv", Path(source), Path(source + ".tables"), limits=limits)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    counts = report.manifest.counts["events"]
    rows.append([counts.read, counts.written, counts.rejected])
print(json.dumps([peaks, rows]))
"""


def write_log(path: Path, rows: int) -> None:
    """A log in which the last events repeat the ids of the first ones."""
    with path.open("w") as file:
        file.write("event_id,user_id,item_id,time,scene\n")
        for row in range(rows):
            number = row if row < ROWS - REPEATED else row - (ROWS - REPEATED)
            user, item = row * 7919 % 20_011, row * 31 % 3_001
            file.write(f"event-{number:09d},user-{user:06d},item-{item:06d},{1_700_000_000 + row},home\n")


def test_memory_is_bounded(tmp_path: Path) -> None:
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    write_log(small, ROWS // 10)
    write_log(large, ROWS)
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_TWICE, str(small), str(large)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    (before, after), counts = json.loads(done.stdout)
    assert counts[1] == [ROWS, ROWS - REPEATED, REPEATED]
    assert large.stat().st_size > 2.5 * ALLOWED
    assert after - before < ALLOWED
