"""Figures, plots and the page of a load test."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.errors import SettingsError
from loadtest.figures import Figures, run_figures, steps_of, sweep_figures
from loadtest.report import Page, render
from loadtest.running import Run
from loadtest.summary import summarize
from loadtest.svg import Axis, Series, line_plot, stacked_plot
from loadtest.sweep import DEFINITION, Step, Sweep

SVG = "{http://www.w3.org/2000/svg}"
MakeRun = Callable[..., Run]


@pytest.fixture
def run(run_of: MakeRun) -> Run:
    """300 good answers, of two tiers, and 20 refusals."""
    latency = [0.01 + 0.0001 * n for n in range(300)] + [0.001] * 20
    return run_of(latency, [0] * 300 + [1] * 20, [1] * 150 + [2] * 170)


def test_figures_of_a_run(run: Run) -> None:
    figures = run_figures("evening", run, summarize(run))
    values = {figure.name: figure.value for figure in figures.measured}
    assert values["serving.evening.offered_rps"] == 32.0
    assert values["serving.evening.p50_ms"] == pytest.approx(24.9)
    assert values["serving.evening.from_send_p50_ms"] == pytest.approx(23.9)
    assert values["serving.evening.tier_nezha_share"] == 0.5
    assert values["serving.evening.error_http_503"] == values["serving.evening.failed"] == 20
    assert values["serving.evening.goodput_share"] == 300 / 320
    assert values["serving.evening.send_lag_p99_ms"] == pytest.approx(1.0)
    assert "serving.evening.p999_ms" not in values
    assert figures.refused["serving.evening.p999_ms"] == "300 samples, at least 20,000 are needed"
    assert figures.warnings == []


def test_every_figure_tells_the_requests_behind_it(run_of: MakeRun) -> None:
    run = run_of([0.01] * 400, [0] * 300 + [1] * 60 + [2] * 40, [1] * 150 + [0] * 250)
    behind = {figure.name: figure.n for figure in run_figures("load", run, summarize(run)).measured}
    assert behind["serving.load.goodput_share"] == behind["serving.load.failed"] == 400
    assert behind["serving.load.p50_ms"] == 340  # good or never answered
    assert behind["serving.load.from_send_p50_ms"] == 300
    assert behind["serving.load.tier_nezha_share"] == 150


def test_a_busy_client_and_errors_in_the_warm_up_are_told(run: Run) -> None:
    doubtful = replace(run, client_cpu=0.71, warmup_errors={"timeout": 3, "http_503": 1})
    warnings = run_figures("load", doubtful, summarize(doubtful)).warnings
    assert warnings[0].startswith("load: the client used 71% of a core, more than 70%")
    assert warnings[1].endswith("1 http_503, 3 timeout")


@pytest.mark.parametrize("scenario", ["", "a.b", "Load", "a b"])
def test_a_scenario_must_fit_into_a_name(run: Run, scenario: str) -> None:
    with pytest.raises(SettingsError, match="does not fit"):
        run_figures(scenario, run, summarize(run))


def test_figures_of_a_sweep(run: Run) -> None:
    steps = [Step(50.0, True, run, summarize(run)), Step(100.0, False, run, summarize(run))]
    figures = sweep_figures("knee", Sweep(50.0, steps, "the client was busy"))
    assert [(figure.name, figure.value, figure.n) for figure in figures.measured] == [("serving.knee.rps", 50.0, 2)]
    assert figures.measured[0].note == f"{DEFINITION}; the client was busy"
    assert sweep_figures("knee", Sweep(None, steps, "nothing held")).refused == {"serving.knee.rps": "nothing held"}
    assert [(step["rate"], step["held"]) for step in steps_of(Sweep(50.0, steps))] == [(50.0, True), (100.0, False)]


def test_the_page_holds_everything_and_needs_nothing(run: Run) -> None:
    summary = summarize(run)
    figures = run_figures("load", replace(run, client_cpu=0.9), summary)
    steps = [Step(50.0, True, run, summary), Step(100.0, False, run, summary)]
    page = Page(
        "A <title>", "windfire loadtest run & more", "now", {"cpu": "2 x <x>"}, {"url": "u"}, figures,
        {"load": run, "load_closed": run}, steps, 50.0,
    )  # fmt: skip
    html = render(page)
    plots = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    titles = [plot.get("aria-label") for plot in plots]
    assert titles == [
        "Percentiles", "load: latency over time", "load: who answered", "load_closed: latency over time",
        "load_closed: who answered", "Rate sweep: knee 50 requests/s", "Rate sweep: goodput",
    ]  # fmt: skip
    assert len(plots[0].findall(f"{SVG}polyline")) == 4
    assert len(plots[1].findall(f"{SVG}polyline")) == 3
    legend = {text.text for text in plots[2].findall(f"{SVG}text")}
    assert {"nezha", "item_to_item", "errors"} <= legend
    assert "<h1>A &lt;title&gt;</h1>" in html
    assert "windfire loadtest run &amp; more" in html
    assert "not given: 300 samples" in html
    assert 'class="warning"' in html
    assert "2 x &lt;x&gt;" in html
    assert not re.search(r"(?:src|href)=|@import|url\(", html)


def test_a_page_without_samples(run_of: MakeRun) -> None:
    empty = run_of([])
    html = render(Page("t", "c", "now", {}, {}, Figures([], {}, []), {"load": empty}))
    assert html.count("nothing was measured") == 3
    assert "<svg" in html


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e9, 1e9)), min_size=1, max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_lines_stay_inside_the_frame(points: list[tuple[float, float]], log_x: bool, log_y: bool) -> None:
    awkward = [*points, (float("nan"), 1.0), (1.0, float("inf"))]
    text = line_plot("t", Axis("x", log=log_x), Axis("y", log=log_y), [Series("a<b", awkward)], {"limit": 5.0})
    plot = ET.fromstring(text)
    drawn = [pair for line in plot.findall(f"{SVG}polyline") for pair in line.get("points", "").split()]
    kept = [p for p in points if (p[0] > 1e-100 or not log_x) and (p[1] > 1e-100 or not log_y)]
    assert len(drawn) == len(kept)
    for pair in drawn:
        x, y = (float(part) for part in pair.split(","))
        assert 69.9 <= x <= 740.1
        assert 45.9 <= y <= 266.1


def test_positions_are_in_proportion() -> None:
    points = [(0.0, 0.0), (5.0, 10.0), (10.0, 20.0)]
    line = ET.fromstring(line_plot("t", Axis("x"), Axis("y"), [Series("a", points)])).find(f"{SVG}polyline")
    assert line is not None
    assert line.get("points") == "70.0,266.0 405.0,156.0 740.0,46.0"
    decades = [(1.0, 1.0), (10.0, 100.0), (100.0, 10_000.0)]
    logs = line_plot("t", Axis("x", log=True), Axis("y", log=True), [Series("a", decades)])
    line = ET.fromstring(logs).find(f"{SVG}polyline")
    assert line is not None
    assert line.get("points") == "70.0,266.0 405.0,156.0 740.0,46.0"


def test_shares_are_stacked() -> None:
    plot = ET.fromstring(stacked_plot("t", Axis("s"), [0.0, 1.0, 2.0], {"a": [0.25, 1.0], "b": [0.75, 0.0]}))
    bars = [bar for bar in plot.findall(f"{SVG}rect") if bar.get("shape-rendering")]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights == pytest.approx([55.0, 220.0, 165.0, 0.0])
    assert float(bars[0].get("y", "")) == pytest.approx(float(bars[2].get("y", "")) + 165.0)
