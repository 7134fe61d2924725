from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from dotenv import dotenv_values
from pydantic import ValidationError
from typer.testing import CliRunner

from feature_store.settings import FeatureSettings
from recsys.errors import ConfigError, UnavailableError
from serving.settings import LogLevel, Settings, read_settings
from windfire.commands.serve import app

REFERENCE = Path(__file__).resolve().parents[2] / "config" / "windfire.reference.env"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WINDFIRE_{name.upper()}", raising=False)
    for name in FeatureSettings.model_fields:
        monkeypatch.delenv(f"WINDFIRE_FEATURES_{name.upper()}", raising=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_the_reference_file_names_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    values = dotenv_values(REFERENCE)
    served = [f"WINDFIRE_{name.upper()}" for name in Settings.model_fields]
    assert list(values) == served + [f"WINDFIRE_FEATURES_{name.upper()}" for name in FeatureSettings.model_fields]
    defaults = Settings(), FeatureSettings()
    for name, value in values.items():
        monkeypatch.setenv(name, value or "")
    assert (Settings(), FeatureSettings()) == defaults


def test_every_setting_is_explained() -> None:
    blocks = [block.splitlines() for block in REFERENCE.read_text().strip().split("\n\n")]
    assert all(line.startswith("#") for block in blocks for line in block[:-1])
    assert [block[-1].partition("=")[0] for block in blocks] == list(dotenv_values(REFERENCE))
    assert min(len(block) for block in blocks) >= 2


def test_units_are_in_the_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_BUNDLE_POLL", "PT0.5S")
    monkeypatch.setenv("WINDFIRE_LOG_LEVEL", "error")
    monkeypatch.setenv("WINDFIRE_UNHEARD_OF", "ignored: other commands share the prefix")
    settings = Settings()
    assert (settings.bundle_poll, settings.log_level) == (timedelta(milliseconds=500), LogLevel.ERROR)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("BEAM", "0"),
        ("BUNDLE_POLL", "PT0S"),
        ("BUNDLE_POLL", "2"),
        ("DRAIN_DELAY", "-PT1S"),
        ("GATE_TOLERANCES", '{"*":1.5}'),
        ("GATE_TOLERANCES", "[]"),
        ("GATE_INCOMPARABLE", "perhaps"),
        ("WARMUP_REQUESTS", "1001"),
        ("EVENT_CLOCK_SKEW", "PT5M0.000001S"),
        ("HISTORY_DEADLINE", "PT0S"),
        ("HISTORY_STORE", "http://host"),
        ("HISTORY_STORE", "redis://"),
        ("HISTORY_ACTIONS", "[]"),
        ("VLLM_URL", "127.0.0.1:8000"),
        ("VLLM_URL", "ftp://host:1"),
        ("VLLM_URL", "http://host:port"),
        ("VLLM_URL", "http://host:1/?key=1"),
        ("VLLM_URL", "http://user:secret@host:1"),
        ("VLLM_TIMEOUT", "PT0S"),
        ("LOG_LEVEL", "loud"),
        ("EXPOSURE_SYNC", "perhaps"),
    ],
)
def test_a_bad_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"WINDFIRE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_the_command_names_the_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_BEAM", "none")
    error = CliRunner().invoke(app, []).exception
    assert isinstance(error, ConfigError)
    assert (error.field, error.value) == ("WINDFIRE_BEAM", "none")


@pytest.mark.parametrize(
    "value",
    [
        "ftp://user:pw@h",
        "http://user:pw@[h",
        "user:pw@h:8000",
        "http://h/?token=pw",
        "http://h:pw",
        "http://[pw",
        "http://pw\u2100.h",
    ],
)
def test_no_part_of_a_bad_url_is_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WINDFIRE_VLLM_URL", value)
    with pytest.raises(ConfigError, match="WINDFIRE_VLLM_URL") as raised:
        read_settings()
    shown = "".join(traceback.format_exception(raised.value))
    assert "ValidationError" in shown, "the chain is shown, too"
    assert "pw" not in shown


def test_no_part_of_a_bad_store_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_HISTORY_STORE", "redis://user:pw@host/pw")
    with pytest.raises(ConfigError, match="WINDFIRE_HISTORY_STORE") as raised:
        read_settings()
    assert "pw" not in "".join(traceback.format_exception(raised.value))


def test_a_store_s_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_HISTORY_STORE", "redis://user:pw@host/1")
    assert "pw" not in repr(read_settings()) + read_settings().model_dump_json()


def test_the_command_names_a_list_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_HISTORY_ACTIONS", "click,cart")
    error = CliRunner().invoke(app, []).exception
    assert isinstance(error, ConfigError)
    assert (error.field, error.value) == ("WINDFIRE_HISTORY_ACTIONS", "click,cart")
    assert "JSON list" in error.message


def test_the_command_names_a_table_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDFIRE_GATE_TOLERANCES", "0.05")
    with pytest.raises(ConfigError, match="WINDFIRE_GATE_TOLERANCES"):
        read_settings()
    monkeypatch.setenv("WINDFIRE_GATE_TOLERANCES", "valid.ndcg@10=0.05")
    with pytest.raises(ConfigError, match="JSON object"):
        read_settings()


def test_a_port_that_is_taken_is_an_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setattr("serving.runner.configure_logs", lambda _: None)
    options = ["--registry", str(tmp_path / "registry"), "--state", str(tmp_path / "state"), "--port", str(taken_port)]
    error = CliRunner().invoke(app, options).exception
    assert isinstance(error, UnavailableError)
    assert "did not start" in str(error)
