"""Two rows of small plots as one SVG file: how evenly codes are used, and how many children prefixes have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.semantic_ids.quality import children_counts, prefix_groups

if TYPE_CHECKING:
    import numpy.typing as npt

_WIDTH: Final = 220
_HEIGHT: Final = 110
_GAP: Final = 50
_BARS: Final = 64  # of a plot; more values are averaged together
_STYLE: Final = "text{font:11px sans-serif;fill:#333}rect{fill:#4878a8}line{stroke:#333}"


def plot_sids(codes: npt.NDArray[np.int32], sizes: tuple[int, ...]) -> str:
    """SVG of semantic IDs.

    Args:
        codes: (I, L).
        sizes: T_1..T_L.
    """
    groups = prefix_groups(codes)
    parts = []
    for level, size in enumerate(sizes):
        use = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        children = children_counts(groups, level)
        parts.append(_plot(f"level {level + 1}: items per code, falling", use, (level, 0), "code rank", size))
        histogram = np.bincount(children)[1:]
        parts.append(_plot(f"prefixes by children, depth {level}", histogram, (level, 1), "children", len(histogram)))
    width, height = len(sizes) * (_WIDTH + _GAP) + _GAP, 2 * (_HEIGHT + 2 * _GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _plot(title: str, values: npt.NDArray[np.integer], place: tuple[int, int], axis: str, last: int) -> str:
    """Bars over a base line; the largest value and the last position are written beside them."""
    bars = [float(part.mean()) for part in np.array_split(values, min(_BARS, len(values)))]
    x, y = _GAP + place[0] * (_WIDTH + _GAP), _GAP + place[1] * (_HEIGHT + 2 * _GAP)
    step, top = _WIDTH / len(bars), max(bars) or 1.0
    rows = [f'<g transform="translate({x},{y})">', f'<text x="0" y="-8">{title}</text>']
    for number, value in enumerate(bars):
        high = _HEIGHT * value / top
        rows.append(f'<rect x="{number * step:.1f}" y="{_HEIGHT - high:.1f}" width="{step:.2f}" height="{high:.1f}"/>')
    rows += [
        f'<line x1="0" y1="{_HEIGHT}" x2="{_WIDTH}" y2="{_HEIGHT}"/>',
        f'<text x="-4" y="9" text-anchor="end">{top:.0f}</text>',
        f'<text x="0" y="{_HEIGHT + 14}">1</text>',
        f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT + 14}" text-anchor="middle">{axis}</text>',
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{last}</text>',
        "</g>",
    ]
    return "\n".join(rows)
