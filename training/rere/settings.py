"""Settings of the reinforcement learning; one YAML file is one experiment."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, TypedDict

from pydantic import Field, model_validator

from training.rere.losses import Clip
from training.rere.rewards import RankNormaliser, Reward, WithoutHit
from training.rere.rollouts import Plan
from training.settings import RunSettings


class Judging(TypedDict):
    """How rollouts are judged."""

    kind: Reward
    normaliser: RankNormaliser
    without_hit: WithoutHit
    noise: float


class RereSettings(RunSettings):
    """The whole of a run."""

    subject: ClassVar[str] = "setting of the reinforcement learning"
    page: ClassVar[str] = "docs/rere.md"

    steps: int = Field(400, ge=1, description="rollouts of a batch, each with its updates")
    cpu_minutes: float | None = Field(None, gt=0, description="ends the run earlier; null = no limit")
    batch: int = Field(64, ge=1, description="histories per step")
    rollout: Literal["beam", "independent", "dynamic"] = "beam"
    group: int = Field(16, ge=2, description="rollouts per history")
    beam: int | None = Field(None, ge=1, description="prefixes kept per level; null = the group's size")
    exclude_history: bool = Field(False, description="a history's own items are no rollouts")
    hint_levels: int = Field(
        0, ge=0, description="codes of the target given, at most, to groups without a hit; 0 = off"
    )
    reward: Literal["rule", "rank", "rank_only"] = "rank"
    rank_normaliser: Literal["code", "paper"] = "code"
    without_hit: Literal["zero", "keep"] = Field("zero", description="ranking reward of groups without a hit")
    reward_noise: float = Field(0.0, ge=0, le=1, description="share of groups whose rewards are turned round")
    keep_idle: bool = Field(True, description="groups of equal rewards stay in the update, held by the divergence")
    loss: Literal["grpo", "dapo", "gspo"] = "grpo"
    updates: int = Field(1, ge=1, description="optimiser steps per rollout")
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float | None = Field(None, gt=0, description="null = 0.28 for dapo, else clip_low")
    kl_weight: float = Field(1e-3, ge=0, description="beta, of the divergence from the run that was started from")
    kl: Literal["k3", "exact"] = Field("k3", description="estimate along the rollouts' codes, or over all children")
    target_weight: float = Field(0.0, ge=0, description="weight of the targets' negative log-likelihood in the loss")
    learning_rate: float = Field(1e-4, gt=0)
    final_rate: float = Field(1.0, ge=0, le=1, description="share of the learning rate left at the last step (cosine)")
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.3, gt=0, description="largest gradient norm")
    evaluate_every: int = Field(50, ge=1, description="steps between evaluations, each with a checkpoint")
    evaluate_users: int = Field(4000, ge=1)
    evaluate_beam: int = Field(20, ge=1)
    patience: int = Field(4, ge=1, description="evaluations without a better validation NDCG@10 before the end")
    threads: int = Field(0, ge=0, description="intra-op threads; 0 = torch's choice, or 1 in each of several processes")
    workers: int = Field(0, ge=0, description="rollout processes beside the learner's; 0 = all in one process")
    alpha: int = Field(0, ge=0, description="steps by which the rollouts' weights may be older than the learner's")
    pinned: bool = Field(True, description="rollouts by weights exactly alpha steps old; false = by the newest")
    chunk: int | None = Field(None, ge=1, description="histories of one call of a rollout; null = the whole batch")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.chunk is not None and self.batch % self.chunk:
            raise ValueError(f"chunk {self.chunk} does not divide the batch of {self.batch}")
        if self.alpha and not self.workers:
            raise ValueError(f"alpha {self.alpha} needs workers: one process rolls out by its newest weights")
        return self

    @property
    def blocks(self) -> int:
        """Calls by which a batch is rolled out."""
        return 1 if self.chunk is None else self.batch // self.chunk

    @property
    def judging(self) -> Judging:
        """How rollouts are judged, for `training.rere.rewards.judged`."""
        return {
            "kind": self.reward,
            "normaliser": self.rank_normaliser,
            "without_hit": self.without_hit,
            "noise": self.reward_noise,
        }

    @property
    def decisive(self) -> str:
        """As JSON, all that decides the weights; settings of several processes only where they do."""
        fields = RereSettings.model_fields
        usual = {name for name in ("alpha", "pinned", "chunk") if getattr(self, name) == fields[name].default}
        return self.model_dump_json(exclude={"workers", *usual})

    @property
    def plan(self) -> Plan:
        """How to roll out."""
        return Plan(self.rollout, self.group, self.beam or self.group, self.hint_levels)

    @property
    def ratio_clip(self) -> Clip:
        """Of the ratio to the rollout's policy."""
        usual = 0.28 if self.loss == "dapo" else self.clip_low
        return Clip(self.clip_low, usual if self.clip_high is None else self.clip_high)
