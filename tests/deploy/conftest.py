"""What the deployment's files say, read once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(value: Any) -> Any:
    """As Compose does it with an empty environment; a variable that must be set gets a word in its place."""
    if isinstance(value, dict):
        return {name: interpolated(one) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one) for one in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: "given" if found[2] == "?" else found[3] or "", value)
    return value


@pytest.fixture(scope="session")
def interpolate() -> Callable[[Any], Any]:
    return interpolated


@pytest.fixture(scope="session")
def compose_text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="session")
def compose(compose_text: str) -> dict[str, Any]:
    """docker-compose.yml with anchors and variables resolved."""
    resolved: dict[str, Any] = interpolated(yaml.safe_load(compose_text))
    return resolved


@pytest.fixture(scope="session")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="session")
def own(services: dict[str, Any]) -> dict[str, Any]:
    """The services that run Windfire's own image."""
    return {
        name: one for name, one in services.items() if one["image"].startswith(("windfire/cpu:", "windfire/loadtest:"))
    }


@pytest.fixture(scope="session")
def dockerfiles() -> dict[str, str]:
    """File name to text, with continued lines joined."""
    return {path.name: path.read_text().replace("\\\n", "") for path in (ROOT / "deploy").glob("*.Dockerfile")}
