"""One HTML page of a load test that needs nothing but itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from loadtest.samples import OK
from loadtest.svg import Axis, Series, line_plot, stacked_plot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.figures import Figures
    from loadtest.running import Run
    from loadtest.sweep import Step

_STRETCHES: Final = 120  # of a plot over time, at most
_CURVE: Final = 200  # points of a percentile curve
_TAIL_TICKS: Final = {2.0: "50 %", 10.0: "90 %", 100.0: "99 %", 1000.0: "99.9 %", 10_000.0: "99.99 %"}
_STYLE: Final = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 860px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c;
  background: #fff }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; margin: 1rem 0 }
svg .title { font-size: 14px; font-weight: 600 }
svg .grid { stroke: #ddd } svg .limit { stroke: #b00; stroke-dasharray: 3 3 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.warning { border-left: 4px solid #d55e00; padding-left: .6rem } pre { white-space: pre-wrap }
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What a report shows.

    Attributes:
        title: of the page.
        command: the command line that repeats it.
        started: ISO 8601.
        environment: machine and versions, JSON-ready.
        settings: what was measured, JSON-ready, without secrets.
        figures: all of them.
        runs: name to run, each with its plots; the first is compared with the others.
        steps: of a sweep.
        knee: of a sweep.
    """

    title: str
    command: str
    started: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    figures: Figures
    runs: Mapping[str, Run] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    knee: float | None = None


def render(page: Page) -> str:
    """The HTML."""
    plots = [plot for name, run in page.runs.items() for plot in (latency_over_time(name, run), tiers(name, run))]
    if page.runs:
        plots.insert(0, percentile_curve(page.runs))
    if page.steps:
        plots += rate_sweep(page.steps, page.knee)
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in page.figures.warnings)
    details = json.dumps(
        {"started": page.started, "environment": page.environment, "settings": page.settings}, indent=1, default=str
    )
    body = (
        f"<h1>{escape(page.title)}</h1><p><code>{escape(page.command)}</code></p>{warnings}{_table(page.figures)}"
        f"{''.join(plots)}<details><summary>Settings and machine</summary><pre>{escape(details)}</pre></details>"
    )
    head = f'<meta charset="utf-8"><title>{escape(page.title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def latency_over_time(name: str, run: Run) -> str:
    """Median, 99th percentile and maximum of good answers by the time they were due."""
    samples = run.samples
    good = samples.outcome == samples.outcomes.index(OK)
    edges = _edges(samples.seconds)
    stretch = np.clip(np.searchsorted(edges, samples.at[good], side="right") - 1, 0, len(edges) - 2)
    millis = samples.latency[good] * 1000
    groups = [millis[stretch == n] for n in range(len(edges) - 1)]
    middles = (edges[:-1] + edges[1:]) / 2
    quantiles = {"median": 0.5, "99 %": 0.99, "maximum": 1.0}
    lines = [
        Series(
            label,
            [(float(x), float(np.quantile(g, q))) for x, g in zip(middles, groups, strict=True) if len(g)],
            number,
        )
        for number, (label, q) in enumerate(quantiles.items())
    ]
    axes = Axis("seconds of the window, by intended time of sending"), Axis("ms", log=True)
    return line_plot(f"{name}: latency over time", *axes, lines, {"deadline": run.load.deadline * 1000})


def percentile_curve(runs: Mapping[str, Run]) -> str:
    """Latency from the intended and from the actual time of sending over the share of requests that are faster."""
    lines = []
    for number, (name, run) in enumerate(runs.items()):
        good = run.samples.outcome == run.samples.outcomes.index(OK)
        lines.append(Series(f"{name}, from due", _curve(run.samples.latency[good]), number))
        lines.append(Series(f"{name}, from sent", _curve(run.samples.from_send[good]), number, dashed=True))
    axes = Axis("share of good answers that came sooner", log=True, ticks=_TAIL_TICKS), Axis("ms", log=True)
    return line_plot("Percentiles", *axes, lines, {"deadline": next(iter(runs.values())).load.deadline * 1000})


def tiers(name: str, run: Run) -> str:
    """Shares of served_by, of errors, and of answers without a tier, over time."""
    samples = run.samples
    good = samples.outcome == samples.outcomes.index(OK)
    edges = _edges(samples.seconds)
    totals, _ = np.histogram(samples.at, edges)
    kinds = {tier or "no tier": good & (samples.tier == number) for number, tier in enumerate(samples.tiers)}
    shares = {
        kind: (np.histogram(samples.at[chosen], edges)[0] / np.maximum(totals, 1)).tolist()
        for kind, chosen in {**kinds, "errors": ~good}.items()
        if chosen.any()
    }
    return stacked_plot(f"{name}: who answered", Axis("seconds of the window"), edges.tolist(), shares)


def rate_sweep(steps: Sequence[Step], knee: float | None) -> list[str]:
    """Latency and goodput over the offered rate."""
    ordered = sorted(steps, key=lambda step: step.rate)
    lines = [
        Series(
            label, [(s.rate, v) for s in ordered if (v := s.summary.latency_ms[key].value) is not None], n, dots=True
        )
        for n, (label, key) in enumerate({"median": "p50", "99 %": "p99"}.items())
    ]
    answered = Series("good answers", [(s.rate, s.summary.answered_rps) for s in ordered], 2, dots=True)
    goodput = Series(
        "within the deadline", [(s.rate, s.summary.goodput_rps.value or 0.0) for s in ordered], 0, dots=True
    )
    offered = Series("offered", [(s.rate, s.summary.offered_rps) for s in ordered], 6, dashed=True)
    rate = Axis("requests/s offered", log=True)
    told = "not found" if knee is None else f"{knee:.4g} requests/s"
    deadline = ordered[0].run.load.deadline * 1000
    return [
        line_plot(f"Rate sweep: knee {told}", rate, Axis("ms", log=True), lines, {"deadline": deadline}),
        line_plot("Rate sweep: goodput", rate, Axis("requests/s"), [offered, answered, goodput]),
    ]


def _edges(seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linspace(0.0, seconds, min(_STRETCHES, max(1, math.ceil(seconds * 2))) + 1)


def _curve(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> list[tuple[float, float]]:
    """(1 / share that is slower, milliseconds), from the median to the last sample but one."""
    if len(seconds) < 4:
        return []
    ordered = np.sort(seconds) * 1000
    slower = np.geomspace(0.5, 1 / len(ordered), _CURVE)
    ranks = np.clip(np.ceil((1 - slower) * len(ordered)).astype(int) - 1, 0, len(ordered) - 1)
    return [(float(1 / share), float(ordered[rank])) for share, rank in zip(slower, ranks, strict=True)]


def _table(figures: Figures) -> str:
    rows = []
    for one in figures.measured:
        interval = "" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"
        cells = "".join(f"<td>{escape(text)}</td>" for text in (one.unit, interval, one.note))
        rows.append(f'<tr><td>{escape(one.name)}</td><td class="number">{one.value:.6g}</td>{cells}</tr>')
    for name, reason in figures.refused.items():
        rows.append(f'<tr><td>{escape(name)}</td><td colspan="4">not given: {escape(reason)}</td></tr>')
    head = "<tr><th>figure</th><th>value</th><th>unit</th><th>95 %</th><th>note</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
