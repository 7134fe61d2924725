"""The one format of all measurements: named figures with their intervals, settings and machine."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from recsys.errors import DataError
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
FIGURES: Final = ROOT / "docs" / "figures"
_MARK: Final = "measured at"
_DIRTY: Final = "-dirty"
_PACKAGES: Final = ("torch", "numpy", "scipy", "faiss-cpu", "pyspark")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: from the general to the particular; listed in docs/figures.md.
        value: the number.
        unit: what it counts ("share", "ms", "minutes", ...).
        low: lower end of the 95 % interval, where one was measured.
        high: upper end.
        n: number of cases behind it.
        note: what a reader must know beside it.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a benchmark.

    Attributes:
        command: the command line that repeats it.
        settings: what was measured, JSON-ready.
        seeds: of the arms; empty where nothing is random.
        figures: in the order they are shown.
        started: ISO 8601 in UTC.
        environment: machine and versions.
    """

    command: str
    settings: dict[str, Any]
    seeds: Sequence[int]
    figures: Sequence[Figure]
    started: str
    environment: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON; the old file stays until the new one is whole."""
        write_json_atomically(path, asdict(self))

    def over(self, earlier: Report) -> Report:
        """With the figures of an earlier run whose data set and method this one did not measure.

        Each says at which commit it was measured, and on which processor, where they are not this run's.
        """
        measured = {_subject(figure.name) for figure in self.figures}
        kept = [figure for figure in earlier.figures if _subject(figure.name) not in measured]
        commit, cpu = (str(earlier.environment.get(name, "unknown")) for name in ("git_commit", "cpu"))
        elsewhere = cpu != self.environment.get("cpu")
        # the file of figures itself, half filled, makes the checkout dirty
        if elsewhere or commit.removesuffix(_DIRTY) != str(self.environment.get("git_commit")).removesuffix(_DIRTY):
            place = f"{_MARK} {commit}{f' on {cpu}' if elsewhere else ''}"
            kept = [
                figure if _MARK in figure.note else replace(figure, note=f"{figure.note}; {place}".lstrip("; "))
                for figure in kept
            ]
        return replace(self, figures=[*self.figures, *kept])

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            DataError: no file there, or one of another form.
        """
        try:
            value: dict[str, Any] = read_json(path)
            figures = [Figure(**figure) for figure in value.pop("figures")]
            return cls(**value, figures=figures)
        except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"no readable figures: {error}",
                field="path",
                value=str(path),
                remedy="run `windfire bench` with --json PATH",
            ) from error


def _subject(name: str) -> str:
    """Benchmark, data set and method of a figure."""
    return ".".join(name.split(".")[:3])


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Device, processor, threads, versions and commit of this run."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "git_commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 - git from PATH is meant
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
