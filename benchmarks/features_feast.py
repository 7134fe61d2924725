"""Feast in `windfire bench features`: a process in an environment of its own, on the same Redis and data."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import DataError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

PYTHON: Final = Path(".venv-feast/bin/python")
PROJECT: Final = "bench"
_WORKER: Final = Path(__file__).with_name("feast_worker.py")
_STOP_SECONDS: Final = 10.0


class FeastReader:
    """Times reads inside the worker, so that the pipe between the processes does not count.

    Args:
        python: of the environment with Feast.
        folder: existing; for the registry and the data.
        address: host:port of Redis.
        counts: names of the fields of the view `counts`.
        rows: of the data, with `user_id` and every field.
        event_time: of all, UTC microseconds.
        reads: the entities of every read.

    Attributes:
        version: of Feast.

    Raises:
        UnavailableError: the worker does not get ready.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        address: str,
        *,
        counts: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        event_time: int,
        reads: Sequence[Sequence[str]],
    ) -> None:
        table = folder / "feast.parquet"
        moment = datetime.fromtimestamp(event_time / 1e6, UTC)
        pq.write_table(pa.Table.from_pylist([{**row, "event_timestamp": moment} for row in rows]), table)
        order = {"folder": str(folder), "address": address, "project": PROJECT, "table": str(table),
                 "counts": list(counts), "reads": [list(read) for read in reads]}  # fmt: skip
        self._log = (folder / "feast.log").open("wb")
        self._worker = subprocess.Popen(  # noqa: S603 - our own arguments
            [str(python), str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._times: dict[int, float] = {}
        try:
            self.version = str(self._ask(order)["feast"])
        except (ValueError, KeyError, OSError):
            self.close()
            tail = (folder / "feast.log").read_text(errors="replace")[-2_000:]
            raise UnavailableError(f"Feast does not get ready:\n{tail}", remedy="make feast") from None

    def __call__(self, number: int) -> None:
        """Read once."""
        answer = self._ask(number)
        if answer["missing"]:
            raise DataError("Feast does not hold what was written", field="missing", value=answer["missing"])
        self._times[number] = answer["ms"]

    def times(self, rounds: int) -> npt.NDArray[np.float64]:
        """(R,) milliseconds of the latest read of each number, inside the worker."""
        return np.array([self._times[number] for number in range(rounds)])

    def close(self) -> None:
        """End the worker."""
        for pipe in (self._worker.stdin, self._worker.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._worker.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, order: Any) -> dict[str, Any]:
        if self._worker.stdin is None or self._worker.stdout is None:
            raise ValueError("the worker has no pipes")
        self._worker.stdin.write(json.dumps(order) + "\n")
        self._worker.stdin.flush()
        answer: dict[str, Any] = json.loads(self._worker.stdout.readline())
        return answer
