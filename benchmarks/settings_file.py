"""The YAML files of the benchmarks, and their sections named `quick`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Settings = TypeVar("Settings", bound=BaseModel)


def load_settings(kind: type[Settings], path: Path, *, quick: bool) -> Settings:
    """Read a benchmark's YAML file; with `quick` its section of that name is laid over the rest.

    Raises:
        ConfigError: not YAML, or a field that is unknown or out of range.
    """
    try:
        value: dict[str, Any] = yaml.safe_load(path.read_text())
        over = value.pop("quick", {})
        return kind.model_validate(merged(value, over) if quick else value)
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError(f"not a benchmark's YAML file: {error!r}", field="config", value=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"benchmark setting: {first['msg']}", field=name, value=first.get("input")) from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid upon it; mappings are merged, all else is replaced."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result
