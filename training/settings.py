"""What the settings of all trainers have in common; one YAML file is one experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class RunSettings(BaseModel):
    """The settings of a run; unknown fields are refused.

    Attributes:
        subject: what is set, for errors.
        page: that explains the fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: ClassVar[str]
    page: ClassVar[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        try:
            return cls.parse(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"not a YAML file: {error}", field="config", value=str(path)) from error

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Self:
        """Validate a mapping.

        Raises:
            ConfigError: a field that is unknown or out of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"{cls.subject}: {first['msg']}",
                field=".".join(str(part) for part in first["loc"]) or "config",
                value=first.get("input"),
                remedy=f"see {cls.page}",
            ) from error
