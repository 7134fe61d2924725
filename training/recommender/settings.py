"""Settings of the recommender's trainer; one YAML file is one experiment."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from training.settings import RunSettings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Strict):
    """The switches of `recsys.models.RecommenderConfig` that do not follow from the data."""

    shape: Literal["compact", "token", "flat"] = "compact"
    use_item_id: bool = True
    use_text: bool = True
    use_collaborative: bool = True
    d_model: int = 128
    layers: int = 3
    heads: int = 4
    ffn_multiple: float = 2.0
    max_history: int = Field(50, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    drop_id: float = Field(0.1, ge=0, lt=1)
    transition: Literal["rnn", "gru", "none"] = "gru"
    fusion: Literal["add", "concat"] = "add"
    placeholders: bool = True
    item_rows: bool | None = Field(
        None, description="compact shape: an output row per item; null = up to 200,000 items, where they are possible"
    )
    whole_codebook: bool = False
    backbone: Literal["own", "huggingface"] = "own"
    backbone_config: dict[str, JsonValue] = {}


class TeacherSettings(_Strict):
    """Distillation from a collaborative teacher, fitted on training interactions; SASRec is ended by validation."""

    kind: Literal["none", "ease", "item_to_item", "sasrec", "ensemble"] = "ease"
    members: tuple[Literal["ease", "item_to_item", "sasrec"], ...] = Field(
        ("ease", "item_to_item", "sasrec"), min_length=1, description="of an ensemble"
    )
    seed: int = Field(0, ge=0, description="sasrec: of its training")
    weight: float = Field(0.5, ge=0, le=1, description="share of the loss that follows the teacher")
    samples: int = Field(2, ge=1, description="items drawn from the teacher per target and step")
    top: int = Field(100, ge=1, description="best items kept per target")
    sharpness: float = Field(2.0, gt=0, description="exponent of the teacher's scores")
    mask_history: bool = True
    regularisation: float = Field(50.0, gt=0, description="EASE's lambda")
    decay: float = Field(0.7, gt=0, le=1, description="weight of an item per step back in the history")
    neighbours: int = Field(200, ge=1, description="item_to_item: neighbours kept per item")
    folds: int = Field(1, ge=1, description="cross-fitting by user folds; 1 = in-sample")


class TrainSettings(RunSettings):
    """The whole of a training run."""

    subject: ClassVar[str] = "training setting"
    page: ClassVar[str] = "docs/training.md"

    model: ModelSettings = ModelSettings()
    teacher: TeacherSettings = TeacherSettings()
    steps: int = Field(900, ge=1)
    cpu_minutes: float | None = Field(None, gt=0, description="ends the run earlier; one process; null = no limit")
    batch_tokens: int = Field(4096, ge=1, description="padded positions per step, over all ranks")
    learning_rate: float = Field(2e-3, gt=0)
    final_rate: float = Field(0.02, ge=0, le=1, description="share of the learning rate left at the end (cosine)")
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    average_decay: float = Field(0.99, ge=0, lt=1, description="exponential average of the weights; 0 = off")
    bf16: bool | None = Field(None, description="bfloat16 autocast; null = where the processor multiplies in it")
    evaluate_every: int = Field(150, ge=1)
    evaluate_users: int = Field(4000, ge=1)
    evaluate_beam: int = Field(20, ge=1)
    patience: int = Field(4, ge=1, description="evaluations without a better validation NDCG@10 before the end")
    checkpoint_every: int = Field(150, ge=1)
    backbone_weight: float = Field(1.0, ge=0, description="token shape: weight of the backbone's next-token loss")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the loss of head and `flat` that follows items drawn evenly"
    )
    drop_events: float = Field(0.0, ge=0, lt=1, description="share of a window's events that a step leaves out")
    threads: int = Field(0, ge=0, description="intra-op threads; 0 = torch's choice")

    def identity(self) -> str:
        """For a run's fingerprint; what came later does not show while it is off: earlier runs still count."""
        later = {
            "cpu_minutes": self.cpu_minutes is None,
            "label_smoothing": self.label_smoothing == 0,
            "drop_events": self.drop_events == 0,
        }
        hidden: dict[str, Any] = {name: True for name, off in later.items() if off}
        if self.teacher.kind not in {"sasrec", "ensemble"}:
            hidden["teacher"] = {"members", "seed"}
        return self.model_dump_json(exclude=hidden)
