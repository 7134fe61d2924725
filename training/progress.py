"""What a person sees of a run while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable


class StepBar:
    """A progress bar that counts optimiser steps.

    Args:
        total: steps of the run.
        done: steps of earlier processes.
        visible: whether it is drawn.
    """

    def __init__(self, total: int, done: int, *, visible: bool) -> None:
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            disable=not visible,
        )
        self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Callable[[str], None]:
        self._bar.start()
        return lambda text: self._bar.update(self._task, advance=1, description=text)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def cpu_seconds() -> float:
    """User and system time of this process so far, all its threads together."""
    return time.process_time()
