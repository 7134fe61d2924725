"""Plots as SVG text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")  # told apart by all eyes
_WIDTH: Final = 760
_LEFT, _RIGHT = 70, 740  # of the plotting area
_AREA: Final = 220  # its height
_BELOW: Final = 46
_ROW: Final = 16  # height of a line of the legend
_SHORT: Final = 18  # letters of a label that fits into a quarter of the width
_TINY: Final = 1e-100  # nothing that is measured is smaller
_SAME: Final = 1e-9  # a relative difference that no plot shows
_TICKS: Final = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        label: in the legend.
        points: (x, y), drawn in this order.
        colour: index in `COLOURS`.
        dashed: drawn so.
        dots: marks the points, too.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a plot.

    Attributes:
        label: beside it.
        log: decades are of equal length; values at or below 0 are not drawn.
        ticks: value to text; empty: chosen.
        from_zero: the axis begins at 0 where it is not logarithmic.
    """

    label: str
    log: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)
    from_zero: bool = True


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Where things lie: the title, the legend in columns, the plotting area.

    Attributes:
        labels: of the legend.
    """

    labels: Sequence[str]

    @property
    def columns(self) -> int:
        return 4 if max((len(label) for label in self.labels), default=0) <= _SHORT else 2

    @property
    def top(self) -> float:
        return 30.0 + _ROW * math.ceil(len(self.labels) / self.columns)

    @property
    def bottom(self) -> float:
        return self.top + _AREA

    def legend(self, colours: Sequence[str], hollow: Sequence[bool]) -> list[str]:
        parts = []
        for number, (label, colour, empty) in enumerate(zip(self.labels, colours, hollow, strict=True)):
            left = _LEFT + (_RIGHT - _LEFT) / self.columns * (number % self.columns)
            height = 36 + _ROW * (number // self.columns)
            paint = f'fill="none" stroke="{colour}" stroke-dasharray="3 2"' if empty else f'fill="{colour}"'
            parts.append(f'<rect x="{left:.1f}" y="{height - 9}" width="10" height="10" {paint}/>')
            parts.append(_text(left + 15, height, label))
        return parts

    def framed(self, title: str, parts: Sequence[str]) -> str:
        head = f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>'
        box = f'viewBox="0 0 {_WIDTH} {self.bottom + _BELOW:.0f}" role="img" aria-label="{escape(title)}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{head}{"".join(parts)}</svg>'

    def empty(self, title: str) -> str:
        middle = (self.top + self.bottom) / 2
        return self.framed(title, [_text(_WIDTH / 2, middle, "nothing was measured", anchor="middle")])


class _Scale:
    """Values to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], low: float, high: float) -> None:
        self._axis = axis
        self._pixels = (low, high)
        least, most = min(values), max(values)
        if axis.from_zero and not axis.log:
            least = min(0.0, least)
        size = max(abs(least), abs(most))
        if most - least <= max(_TINY, size * _SAME):
            room = max(0.5, size * 1e-3)
            least, most = (least / 2, most * 2) if axis.log else (least - room, most + room)
        self.least, self.most = least, most

    def __call__(self, value: float) -> float:
        least, most = self._position(self.least), self._position(self.most)
        low, high = self._pixels
        return low + (self._position(value) - least) / (most - least) * (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        chosen = self._axis.ticks or {value: f"{value:g}" for value in self._round_values()}
        slack = (self.most - self.least) * 1e-9
        return [(value, text) for value, text in chosen.items() if self.least - slack <= value <= self.most + slack]

    def _round_values(self) -> list[float]:
        if self._axis.log:
            decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            steps = (1,) if len(decades) > _TICKS else (1, 2, 5)
            return [step * 10.0**decade for decade in decades for step in steps]
        raw = (self.most - self.least) / _TICKS
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * (1 - 1e-9))
        first = math.ceil(self.least / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.most / step + 1e-9) + 1)]

    def _position(self, value: float) -> float:
        return math.log10(value) if self._axis.log else value


def line_plot(title: str, x: Axis, y: Axis, series: Sequence[Series], limits: Mapping[str, float] | None = None) -> str:
    """Lines over two axes.

    Args:
        title: above it.
        x: axis to the right.
        y: axis upwards.
        series: lines; points that are not finite, or not positive on a logarithmic axis, are left out.
        limits: text to a value of `y` that is drawn across, such as a deadline.
    """
    lines = [(one, [p for p in one.points if _drawable(p[0], x) and _drawable(p[1], y)]) for one in series]
    canvas = _Canvas([one.label for one in series])
    points = [point for _, drawn in lines for point in drawn]
    if not points:
        return canvas.empty(title)
    levels = {name: value for name, value in (limits or {}).items() if _drawable(value, y)}
    across = _Scale(x, [px for px, _ in points], _LEFT, _RIGHT)
    up = _Scale(y, [py for _, py in points] + list(levels.values()), canvas.bottom, canvas.top)
    colours = [COLOURS[one.colour % len(COLOURS)] for one in series]
    parts = [*_axes(x, y, across, up, canvas), *canvas.legend(colours, [one.dashed for one in series])]
    for name, value in levels.items():
        height = up(value)
        parts.append(_line(_LEFT, height, _RIGHT, height, "limit"))
        parts.append(_text(_RIGHT, height - 4, name, anchor="end"))
    for (one, drawn), colour in zip(lines, colours, strict=True):
        path = " ".join(f"{across(px):.1f},{up(py):.1f}" for px, py in drawn)
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        if one.dots:
            parts += [f'<circle cx="{across(px):.1f}" cy="{up(py):.1f}" r="3" fill="{colour}"/>' for px, py in drawn]
    return canvas.framed(title, parts)


def stacked_plot(title: str, x: Axis, edges: Sequence[float], shares: Mapping[str, Sequence[float]]) -> str:
    """Shares of 1 over time, one on the other.

    Args:
        title: above it.
        x: axis to the right.
        edges: of the stretches, one more than there are shares of a name.
        shares: name to its share of each stretch.
    """
    canvas = _Canvas(list(shares))
    if len(edges) < 2 or not shares:
        return canvas.empty(title)
    y = Axis("share")
    across = _Scale(x, edges, _LEFT, _RIGHT)
    up = _Scale(y, [0.0, 1.0], canvas.bottom, canvas.top)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(shares))]
    parts = [*_axes(x, y, across, up, canvas), *canvas.legend(colours, [False] * len(colours))]
    below = [0.0] * (len(edges) - 1)
    for values, colour in zip(shares.values(), colours, strict=True):
        for n, value in enumerate(values):
            top, left, right = up(below[n] + value), across(edges[n]), across(edges[n + 1])
            size = f'width="{right - left:.2f}" height="{up(below[n]) - top:.2f}" shape-rendering="crispEdges"'
            parts.append(f'<rect x="{left:.2f}" y="{top:.2f}" {size} fill="{colour}"/>')
            below[n] += value
    return canvas.framed(title, parts)


def _drawable(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > _TINY or not axis.log)


def _axes(x: Axis, y: Axis, across: _Scale, up: _Scale, canvas: _Canvas) -> list[str]:
    middle = (canvas.top + canvas.bottom) / 2
    parts = []
    for value, text in across.ticks():
        parts.append(_line(across(value), canvas.top, across(value), canvas.bottom, "grid"))
        parts.append(_text(across(value), canvas.bottom + 16, text, anchor="middle"))
    for value, text in up.ticks():
        parts.append(_line(_LEFT, up(value), _RIGHT, up(value), "grid"))
        parts.append(_text(_LEFT - 6, up(value) + 4, text, anchor="end"))
    parts.append(_text((_LEFT + _RIGHT) / 2, canvas.bottom + 36, x.label, anchor="middle"))
    parts.append(
        f'<text x="16" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 16 {middle:.1f})">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
