from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from recsys.errors import ConfigError
from windfire.commands.engine import app

if TYPE_CHECKING:
    from serving.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Path]]:
    """What engines were started with."""
    calls: list[tuple[Settings, Path]] = []
    monkeypatch.setattr("serving.remote.runner.run_engine", lambda *given: calls.append(given))
    monkeypatch.delenv("WINDFIRE_ENGINE_SOCKET", raising=False)
    return calls


def test_the_socket_comes_from_the_option_or_else_from_the_environment(
    started: list[tuple[Settings, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDFIRE_ENGINE_SOCKET", "from/environment.sock")
    CliRunner().invoke(app, ["--registry", "there"], catch_exceptions=False)
    CliRunner().invoke(app, ["--socket", "from/option.sock"], catch_exceptions=False)
    assert [path for _, path in started] == [Path("from/environment.sock"), Path("from/option.sock")]
    assert started[0][0].registry == Path("there")


@pytest.mark.parametrize("environment", [{}, {"WINDFIRE_ENGINE_SOCKET": ""}])
def test_an_engine_without_a_socket_is_refused(
    started: list[tuple[Settings, Path]], environment: dict[str, str]
) -> None:
    error = CliRunner().invoke(app, [], env=environment).exception
    assert isinstance(error, ConfigError)
    assert error.field == "WINDFIRE_ENGINE_SOCKET"
    assert not started
