"""Settings of a compressor's training; one YAML file is one experiment."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from training.settings import RunSettings


class SmecSettings(RunSettings):
    """The whole of a training; the three switches of the method are the first three fields."""

    subject: ClassVar[str] = "setting of the compressor's training"
    page: ClassVar[str] = "docs/smec.md"

    sequential: bool = Field(True, description="SMRL: one halving at a time, earlier layers frozen; else all jointly")
    selection: bool = Field(True, description="ADS: learned choice of dimensions; else the first ones")
    memory: int = Field(5000, ge=0, description="S-XBM: vectors kept of earlier batches; 0 = the batch alone")

    halvings: int = Field(4, ge=1, le=12, description="the narrowest width is the vectors' divided by 2^halvings")
    rotate: bool = Field(True, description="turn the vectors to their principal axes first; keeps all similarities")

    steps: int = Field(150, ge=1, description="optimiser steps per halving, also where all are trained jointly")
    batch: int = Field(64, ge=1, description="labelled queries per step")
    anchors: int = Field(64, ge=2, description="vectors per step whose neighbourhood is kept")
    neighbours: int = Field(8, ge=1, description="of each anchor")
    negatives: int = Field(4, ge=0, description="documents per query drawn from its nearest that are not right")
    hard: int = Field(50, ge=1, description="how many of the nearest those are drawn from")

    alpha: float = Field(0.1, ge=0, description="weight of the neighbour loss beside the rank loss")
    pair: float = Field(1.0, ge=0, description="Matryoshka-Adaptor: weight of all pairs of anchors")
    recovery: float = Field(0.1, ge=0, description="the adaptors: weight of how far a vector is moved")
    scale: float = Field(10.0, gt=0, description="of the cosines inside the rank loss; the paper's formula has 1")
    temperature: float = Field(1.0, gt=0, description="of the softmax over Gumbel-perturbed logits")

    learning_rate: float = Field(1e-3, gt=0)
    logit_rate: float = Field(1e-2, gt=0, description="learning rate of the choice of dimensions")
    final_rate: float = Field(0.05, ge=0, le=1, description="share of the learning rate left at the end (cosine)")
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0, description="pulls a layer towards the identity")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")

    holdout: float = Field(
        0.2, ge=0, lt=1, description="share of the labelled queries that is measured, not trained on"
    )
    evaluate_rows: int = Field(1000, ge=1, description="vectors whose neighbours are counted at the end")
    checkpoint_every: int = Field(200, ge=1)
    threads: int = Field(0, ge=0, description="intra-op threads; 0 = torch's choice")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        return self
