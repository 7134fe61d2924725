"""Settings of the head's fitting; one YAML file is one experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class HeadSettings(BaseModel):
    """The whole of a fitting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(600, ge=1)
    batch: int = Field(32, ge=1, description="histories per step")
    samples: int = Field(8, ge=1, description="semantic IDs that the backbone draws per history and step")
    data_weight: float = Field(0.0, ge=0, le=1, description="share of the loss that follows the data's next items")
    learning_rate: float = Field(2e-3, gt=0)
    final_rate: float = Field(0.05, ge=0, le=1, description="share of the learning rate left at the end (cosine)")
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    evaluate_every: int = Field(100, ge=1)
    evaluate_users: int = Field(500, ge=1)
    evaluate_beam: int = Field(50, ge=1)
    patience: int = Field(5, ge=1, description="evaluations without a better agreement before the end")
    checkpoint_every: int = Field(100, ge=1)
    threads: int = Field(0, ge=0, description="intra-op threads; 0 = torch's choice")

    @classmethod
    def load(cls, path: Path) -> HeadSettings:
        """Read a YAML file.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        try:
            return cls.parse(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"not a YAML file: {error}", field="config", value=str(path)) from error

    @classmethod
    def parse(cls, value: dict[str, Any]) -> HeadSettings:
        """Validate a mapping.

        Raises:
            ConfigError: a field that is unknown or out of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"setting of the head's fitting: {first['msg']}",
                field=name,
                value=first.get("input"),
                remedy="see docs/import_model.md",
            ) from error
