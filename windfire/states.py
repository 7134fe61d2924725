"""State directories of servers, engines and their workers, as reports read them."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from recsys.evaluation.intervals import Interval

ACTIONS: Final = ("click", "purchase")
"""Actions that the reports on bundles count."""


def logs(states: Sequence[Path], name: str) -> Iterator[Path]:
    """The logs of one name in state directories and in those of workers below them (`worker-<n>`).

    Raises:
        DataError: a state directory is not there.
    """
    for state in states:
        if not state.is_dir():
            raise DataError("no state directory here", field="state", value=str(state), remedy="give --state of serve")
        for folder in (state, *sorted(state.glob("worker-*"))):
            if (folder / name).is_dir():
                yield folder / name


def spoken(name: str, found: Interval) -> dict[str, Any]:
    """A value and its interval by name; what is no number stays out, because JSON has no word for it."""
    value = {name: found.value} if isfinite(found.value) else {}
    return value | ({f"{name}_95": [found.low, found.high]} if isfinite(found.low) else {})
