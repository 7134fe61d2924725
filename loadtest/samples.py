"""Raw samples of a run: written to a temporary file while it lasts, so that memory does not grow with it."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_ROW: Final = struct.Struct("<dffBB")
_DTYPE: Final = np.dtype(
    [("at", "<f8"), ("latency", "<f4"), ("from_send", "<f4"), ("outcome", "u1"), ("tier", "u1")], align=False
)
_BLOCK_ROWS: Final = 16_384
_MOST_NAMES: Final = 255
_REST: Final = "other"
OK: Final = "ok"


class Names:
    """Small numbers for the names that occur; what comes after 254 different ones is counted as `other`."""

    def __init__(self, *first: str) -> None:
        self._numbers: dict[str, int] = {name: number for number, name in enumerate(first)}

    def number(self, name: str) -> int:
        """Of a name, for one byte."""
        known = self._numbers.get(name)
        if known is None:
            name = name if len(self._numbers) < _MOST_NAMES - 1 else _REST
            known = self._numbers.setdefault(name, len(self._numbers))
        return known

    def all(self) -> list[str]:
        """Names by their numbers."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True, repr=False)  # whoever prints a run does not want a million numbers
class Samples:
    """The measured requests of one run, in the order of their ends.

    Attributes:
        at: intended time of sending, seconds from the begin of the measured window, float64 [n].
        latency: seconds from the intended time to the end of the answer, or until it was given up, float64 [n].
        from_send: seconds from the actual sending; NaN where nothing was sent, float64 [n].
        outcome: number in `outcomes`, uint8 [n].
        tier: number in `tiers`, uint8 [n].
        outcomes: `ok` first, then kinds of errors.
        tiers: values of served_by; the first, empty one stands for answers without it.
        seconds: length of the measured window.
    """

    at: npt.NDArray[np.float64]
    latency: npt.NDArray[np.float64]
    from_send: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.uint8]
    tier: npt.NDArray[np.uint8]
    outcomes: list[str]
    tiers: list[str]
    seconds: float

    @property
    def offered(self) -> int:
        """Requests whose intended time lies in the window."""
        return len(self.at)


class Recorder:
    """Takes samples one by one; holds one block of them."""

    def __init__(self) -> None:
        self._outcomes = Names(OK)
        self._tiers = Names("")
        self._block = bytearray(_ROW.size * _BLOCK_ROWS)
        self._used = 0
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`

    def add(self, at: float, latency: float, from_send: float, outcome: str, tier: str) -> None:
        """One request; see `Samples`."""
        _ROW.pack_into(
            self._block, self._used, at, latency, from_send, self._outcomes.number(outcome), self._tiers.number(tier)
        )
        self._used += _ROW.size
        if self._used == len(self._block):
            self._flush()

    def finish(self, seconds: float) -> Samples:
        """All samples; the recorder is closed."""
        self._flush()
        self._file.seek(0)
        rows = np.frombuffer(self._file.read(), dtype=_DTYPE)
        self._file.close()
        return Samples(
            rows["at"].astype(np.float64), rows["latency"].astype(np.float64), rows["from_send"].astype(np.float64),
            rows["outcome"].copy(), rows["tier"].copy(), self._outcomes.all(), self._tiers.all(), seconds,
        )  # fmt: skip

    def close(self) -> None:
        """Drop what was recorded; harmless after `finish`."""
        self._file.close()

    def _flush(self) -> None:
        self._file.write(memoryview(self._block)[: self._used])
        self._used = 0
