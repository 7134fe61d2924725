"""`windfire loadtest`: rates, knees and journeys against a server, over HTTP only."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from loadtest.figures import Figures
    from loadtest.running import Run
    from loadtest.settings import LoadSettings
    from loadtest.sweep import Step, Sweep

app = typer.Typer(no_args_is_help=True)

Config = Annotated[Path | None, typer.Option(help="YAML such as config/loadtest.yaml. Default: its values.")]
Url = Annotated[str | None, typer.Option(help="http://host:port of the server.")]
Deadline = Annotated[float | None, typer.Option(help="Seconds of each request, from the time it is due.")]
Seed = Annotated[int | None, typer.Option(help="Of arrivals and requests.")]
Json = Annotated[Path | None, typer.Option(help="Write the figures here.")]
Html = Annotated[Path | None, typer.Option(help="Write a page with plots here.")]


@app.callback()
def group() -> None:
    """Load tests over HTTP: latency counts from the time a request was due, not from when it could be sent."""


@app.command("run")
def run(
    config: Config = None, url: Url = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Measured window.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Seconds before it.")] = None,
    deadline: Deadline = None, seed: Seed = None,
    closed: Annotated[bool, typer.Option("--closed", help="Then the same requests in a closed loop.")] = False,
    scenario: Annotated[str, typer.Option(help="Second part of the figures' names.")] = "load",
    json: Json = None, html: Html = None,
) -> None:  # fmt: skip
    """Send a Poisson stream at one rate and report percentiles, goodput, tiers and errors."""
    from benchmarks.figures import now
    from loadtest.answers import not_empty
    from loadtest.closed_loop import run_closed
    from loadtest.figures import run_figures
    from loadtest.open_loop import run_open
    from loadtest.running import run_in_loop
    from loadtest.summary import summarize

    with _translated():
        given = {"url": url, "rate": rate, "seconds": seconds, "warmup": warmup, "deadline": deadline, "seed": seed}
        settings, started = _settings(config, given), now()
        target, load, work = settings.target(), settings.one(), settings.workload
        runs = {scenario: run_in_loop(run_open(target, load, work.requests(target, load.seed), not_empty))}
        if closed:
            again = work.requests(target, load.seed)
            runs[f"{scenario}_closed"] = run_in_loop(run_closed(target, load, again, settings.closed_users, not_empty))
        figures = [run_figures(name, one, summarize(one)) for name, one in runs.items()]
    _report("Load test", settings, started, _sum(figures), json, html, runs=runs)


@app.command("sweep")
def sweep(
    config: Config = None, url: Url = None, deadline: Deadline = None, seed: Seed = None,
    scenario: Annotated[str, typer.Option(help="Second part of the figure's name.")] = "knee",
    json: Json = None, html: Html = None,
) -> None:  # fmt: skip
    """Find the knee: the highest rate that is held within the deadline."""
    import asyncio

    from benchmarks.figures import now
    from loadtest.answers import not_empty
    from loadtest.figures import steps_of, sweep_figures
    from loadtest.open_loop import run_open
    from loadtest.running import run_in_loop
    from loadtest.summary import summarize
    from loadtest.sweep import Step, find_knee, held

    console = _console()
    with _translated():
        settings, started = _settings(config, {"url": url, "deadline": deadline, "seed": seed}), now()
        target, rates = settings.target(), settings.sweep
        requests = settings.workload.requests(target, settings.seed)

        async def measure(rate: float) -> Step:
            load = settings.step(rate)
            run = await run_open(target, load, requests, not_empty)
            summary = summarize(run)
            step = Step(rate, held(summary, load.deadline), run, summary)
            console.print(_progress(step), markup=False)
            await asyncio.sleep(rates.pause)
            return step

        bounds = {"start": rates.start, "lowest": rates.lowest, "highest": rates.highest}
        found = run_in_loop(find_knee(measure, **bounds, precision=rates.precision))
        figures = sweep_figures(scenario, found)
    _report("Rate sweep", settings, started, figures, json, html, swept=found, more={"steps": steps_of(found)})
    raise typer.Exit(1 if found.knee is None else 0)


@app.command("selftest")
def selftest(
    seconds: Annotated[float, typer.Option(help="Measured window; the stub is frozen for a tenth of it.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of arrivals.")] = 1,
    json: Json = None, html: Html = None,
) -> None:  # fmt: skip
    """Freeze a stub server and see whether the tail shows it; a closed loop beside it must miss it."""
    from benchmarks.figures import now
    from loadtest.figures import run_figures, steps_of
    from loadtest.selftest import BOUNDS, self_test
    from loadtest.settings import LoadSettings

    console = _console()
    with _translated():
        started = now()
        test = self_test(seconds, seed=seed, say=lambda text: console.print(text, markup=False))
        runs = {"selftest": test.open_loop, "selftest_closed": test.closed_loop}
        summaries = (test.open_summary, test.closed_summary)
        figures = [run_figures(name, one, of) for (name, one), of in zip(runs.items(), summaries, strict=True)]
        settings = LoadSettings.load(None, seconds=seconds, seed=seed, rate=test.knee / 2)
    more = {
        "freeze_seconds": test.freeze, "knee_rps": test.knee, "bounds": BOUNDS, "failures": test.failures,
        "steps": steps_of(test.sweep) if test.sweep is not None else [],
    }  # fmt: skip
    _report(
        "Self-test of the load runner",
        settings,
        started,
        _sum(figures),
        json,
        html,
        runs=runs,
        swept=test.sweep,
        more=more,
    )
    for failure in test.failures:
        console.print(f"failed: {failure}", style="red", markup=False)
    if not test.failures:
        console.print("✓ the open loop shows the freeze, the closed loop misses it")
    raise typer.Exit(1 if test.failures else 0)


@app.command("journeys")
def journeys(
    config: Config = None, url: Url = None,
    users: Annotated[int, typer.Option(min=1, help="Visitors at the same time.")] = 10,
    seconds: Annotated[int, typer.Option(min=1, help="How long.")] = 60,
    html: Annotated[Path | None, typer.Option(help="Write locust's page here.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Begin of the names of locust's tables.")] = None,
) -> None:  # fmt: skip
    """Let locust's users browse, click and come back; needs the extra `loadtest`. Its times are a closed loop's."""
    from recsys.errors import ConfigError

    if find_spec("locust") is None:
        raise ConfigError(
            "locust is not installed", field="extra", value="loadtest", remedy="pip install '.[loadtest]'"
        )
    with _translated():
        settings = _settings(config, {"url": url})
        settings.target()
    import loadtest.journeys

    file = Path(loadtest.journeys.__file__).with_name("locustfile.py")
    call = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary", "--host", settings.url]
    call += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"]
    call += ["--html", str(html)] if html is not None else []
    call += ["--csv", str(csv)] if csv is not None else []
    place = {"WINDFIRE_LOADTEST_CONFIG": str(config.resolve())} if config is not None else {}
    done = subprocess.run(call, env={**os.environ, **place}, check=False)  # noqa: S603 - this interpreter
    raise typer.Exit(done.returncode)


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the load tests, which know nothing of Windfire, as Windfire's."""
    from loadtest.errors import LoadTestError, UnreachableError
    from recsys.errors import ConfigError, UnavailableError

    try:
        yield
    except LoadTestError as error:
        kind = UnavailableError if isinstance(error, UnreachableError) else ConfigError
        raise kind(error.message, field=error.field, value=error.value, remedy=error.remedy) from error


def _settings(config: Path | None, given: Mapping[str, Any]) -> LoadSettings:
    from loadtest.settings import LoadSettings

    return LoadSettings.load(config, **given)


def _sum(figures: Sequence[Figures]) -> Figures:
    total = figures[0]
    for one in figures[1:]:
        total = total + one
    return total


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _progress(step: Step) -> str:
    p99, share = step.summary.latency_ms["p99"].value, step.summary.goodput_share.value or 0.0
    told = "-" if p99 is None else f"{p99:.1f} ms"
    verdict = "held" if step.held else "not held"
    return f"{step.rate:10.4g} requests/s  p99 {told:>10}  within the deadline {share:.2%}  {verdict}"


def _report(
    title: str, settings: LoadSettings, started: str, figures: Figures, json: Path | None, html: Path | None,
    *, runs: Mapping[str, Run] | None = None, swept: Sweep | None = None, more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Show the figures and write what was asked for; behind the run, because it loads torch to name its version."""
    from benchmarks.figures import Figure, Report, environment
    from loadtest.report import Page, render
    from recsys.storage import write_bytes_atomically

    console = _console()
    for one in figures.measured:
        console.print(f"{one.name:44} {one.value:12.6g} {one.unit}", markup=False)
    for name, reason in figures.refused.items():
        console.print(f"{name:44} {'not given':>12} {reason}", markup=False)
    for warning in figures.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if json is None and html is None:
        return
    command, machine = shlex.join(["windfire", *sys.argv[1:]]), environment()
    told = {**jsonlib.loads(settings.model_dump_json()), **(more or {})}
    told |= {"refused": figures.refused, "warnings": figures.warnings}
    if json is not None:
        measured = [Figure(**asdict(one)) for one in figures.measured]
        Report(command, told, [settings.seed], measured, started, machine).save(json)
    if html is not None:
        steps, knee = (swept.steps, swept.knee) if swept is not None else ((), None)
        page = Page(title, command, started, machine, told, figures, runs or {}, steps, knee)
        write_bytes_atomically(html, render(page).encode())
