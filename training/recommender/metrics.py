"""Metrics of a run as CSV for people and programs, and as TensorBoard events beside it."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from torch.utils.tensorboard import SummaryWriter

from recsys.storage import write_bytes_atomically

if TYPE_CHECKING:
    from pathlib import Path

_PAUSE: Final = 0.05  # seconds


class MetricsLog:
    """metrics.csv and tensorboard/ of a run directory.

    Args:
        out: the run directory.
        step: of the checkpoint that the run goes on from, 0 at its beginning; what was logged behind it is forgotten,
            for it will be logged again.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        self._path = out / "metrics.csv"
        with suppress(FileNotFoundError):
            rows = [row for row in self._path.read_text().splitlines(keepends=True) if row.endswith("\n")]
            kept = rows[:1] + [row for row in rows[1:] if int(row.split(",", 1)[0]) <= step]
            write_bytes_atomically(self._path, "".join(kept).encode())
        if step:
            _wait_for_a_later_second(out / "tensorboard")
        self._events = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def append(self, step: int, row: dict[str, float]) -> None:
        """Log one evaluation.

        Args:
            step: optimiser steps done.
            row: name to value; the same names every time.
        """
        new = not self._path.exists() or not self._path.stat().st_size
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *row])
            writer.writerow([step, *(f"{value:.6g}" for value in row.values())])
        for name, value in row.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()  # a killed process takes nothing with it

    def close(self) -> None:
        """Write out what TensorBoard has not got yet."""
        self._events.close()


def _wait_for_a_later_second(folder: Path) -> None:
    """Files of events are read in the order of their names, which begin with the second they were made in."""
    newest = max((int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")), default=0)
    while int(time.time()) <= newest:
        time.sleep(_PAUSE)
