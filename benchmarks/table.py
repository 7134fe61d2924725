"""A table as Markdown and for a terminal, and figures as its cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.table import Table as RichTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figures import Figure

ABSENT: Final = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, the first column left, the others right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table, every line ended."""
        marks = ["---", *["---:"] * (len(self.header) - 1)]
        return "".join(f"| {' | '.join(row)} |\n" for row in (self.header, marks, *self.rows))

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for column, name in enumerate(self.header):
            table.add_column(name, justify="right" if column else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def share_text(figure: Figure, *, signed: bool = False) -> str:
    """The value with four places, without the zero before the point."""
    return _short(figure.value, signed=signed)


def interval_text(figure: Figure, *, signed: bool = False) -> str:
    """The ends of the interval."""
    if figure.low is None or figure.high is None:
        return ABSENT
    return f"{_short(figure.low, signed=signed)} to {_short(figure.high, signed=signed)}"


def _short(value: float, *, signed: bool) -> str:
    """Four places without the zero before the point: .0482, +.0031."""
    return f"{value:+.4f}".replace("+0.", "+.").replace("-0.", "-.") if signed else f"{value:.4f}".removeprefix("0")
