"""`windfire loadtest` against a stub in a process of its own."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.figures import Report
from loadtest.stub import Stub
from recsys.errors import ConfigError, UnavailableError
from windfire.commands.loadtest import app


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_run_writes_figures_and_a_page(tmp_path: Path) -> None:
    json_path, html = tmp_path / "load.json", tmp_path / "load.html"
    config = tmp_path / "load.yaml"
    config.write_text("warmup: 0.2\nseed: 5\ndeadline: 1.0\n")
    options = ["--config", str(config), "--rate", "300", "--seconds", "1", "--scenario", "evening", "--closed"]
    with Stub(0.0005) as stub:
        result = call("run", "--url", stub.url, *options, "--json", str(json_path), "--html", str(html))
    assert result.exit_code == 0
    report = Report.load(json_path)
    values = {figure.name: figure.value for figure in report.figures}
    assert values["serving.evening.goodput_share"] == values["serving.evening_closed.goodput_share"] == 1.0
    assert values["serving.evening.tier_nezha_share"] == 1.0
    assert values["serving.evening.offered_rps"] == pytest.approx(300, abs=80)
    assert values["serving.evening.failed"] == 0
    assert report.seeds == [5]
    assert (report.settings["rate"], report.settings["warmup"]) == (300.0, 0.2)
    assert "at least 20,000" in report.settings["refused"]["serving.evening.p999_ms"]
    assert html.read_text().startswith("<!doctype html>")
    assert "evening_closed: latency over time" in html.read_text()
    assert "serving.evening.p99_ms" in result.output


def test_a_sweep_finds_what_the_stub_can_do(tmp_path: Path) -> None:
    json_path = tmp_path / "knee.json"
    config = tmp_path / "load.yaml"
    # the stub answers 1,000 in a second: at 1.6 times that its queue is longer than the deadline within the window
    rates = "{start: 400.0, precision: 1.0, seconds: 0.6, least: 300, warmup: 0.0, pause: 0.0}"
    config.write_text(f"sweep: {rates}\ndeadline: 0.2\ntimeout: 0.6\n")
    with Stub(0.001) as stub:
        result = call("sweep", "--config", str(config), "--url", stub.url, "--json", str(json_path))
    report = Report.load(json_path)
    knee = {figure.name: figure.value for figure in report.figures}["serving.knee.rps"]
    assert knee < 1600.0
    assert knee == max(step["rate"] for step in report.settings["steps"] if step["held"])
    assert result.exit_code == 0
    assert "requests/s  p99" in result.output


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="start the server first") as error:
            call("run", "--url", url, "--seconds", "1")
    assert (error.value.field, error.value.value) == ("url", url)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("run", "--rate", "0"), "rate"), (("run", "--deadline", "20"), "timeout"),
     (("sweep", "--url", "https://x"), "url"), (("selftest", "--seconds", "1"), "seconds"),
     (("journeys", "--url", "x"), "url")],
)  # fmt: skip
def test_what_is_wrong_is_windfires_own_error(arguments: tuple[str, ...], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        call(*arguments)
    assert error.value.field == field


def test_settings_of_a_report_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD_KEY", "s3cret")
    config, json_path, html = tmp_path / "load.yaml", tmp_path / "load.json", tmp_path / "load.html"
    config.write_text("header_variables: {X-API-Key: LOAD_KEY}\nwarmup: 0.0\ndeadline: 1.0\n")
    with Stub(0.0005) as stub:
        options = ["--config", str(config), "--rate", "100", "--seconds", "0.3"]
        call("run", "--url", stub.url, *options, "--json", str(json_path), "--html", str(html))
    assert json.loads(json_path.read_text())["settings"]["header_variables"] == {"X-API-Key": "LOAD_KEY"}
    assert "s3cret" not in json_path.read_text() + html.read_text()
