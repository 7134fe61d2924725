"""Settings of the fusion; one YAML file is one experiment."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from training.settings import RunSettings

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SecondSettings(RunSettings):
    """What is tried of a second model."""

    subject: ClassVar[str] = "setting of the fusion"
    page: ClassVar[str] = "docs/training.md"

    weights: tuple[_Weight, ...] = Field(
        (0.3, 0.6, 1.0, 1.5, 2.5), min_length=1, description="tried on validation, each beside all others; 0 always is"
    )


class FusionSettings(RunSettings):
    """The whole of a fitting."""

    subject: ClassVar[str] = "setting of the fusion"
    page: ClassVar[str] = "docs/training.md"

    neighbours: int = Field(200, ge=1, description="kept per item")
    shrink: float = Field(10.0, ge=0, allow_inf_nan=False, description="added to the cosine's denominator")
    decay: float = Field(0.6, gt=0, le=1, description="weight of an item per step back in the history")
    max_history: int = Field(50, ge=1, description="newest items that count")
    candidates: int = Field(100, ge=1, description="items asked of nezha; its beam is at least as wide")
    floor: float = Field(0.01, gt=0, allow_inf_nan=False, description="added to the item-to-item score")
    weights: tuple[_Weight, ...] = Field(
        (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), min_length=1, description="tried on validation; 0 always is"
    )
    evaluate_users: int = Field(8000, ge=1, description="at most so many, spread evenly")
    second: SecondSettings = Field(SecondSettings(), description="of a second model, where one is given")
