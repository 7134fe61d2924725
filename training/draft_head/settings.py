"""Settings of the head's fitting; one YAML file is one experiment."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from training.settings import RunSettings


class HeadSettings(RunSettings):
    """The whole of a fitting."""

    subject: ClassVar[str] = "setting of the head's fitting"
    page: ClassVar[str] = "docs/import_model.md"

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
