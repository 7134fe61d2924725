"""The settings of the offline jobs: one YAML file, every key with a default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from annotated_types import Ge, Gt, Interval
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from recsys.errors import ConfigError
from recsys.records import POSITIVE_ACTIONS
from recsys.semantic_ids.settings import SemanticIdSettings
from recsys.text.encoder import PACKAGED_MODEL

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CoreSettings(_Section):
    """Keep users and items with at least so many positive events, repeatedly; 1 keeps all of them."""

    min_user_events: Annotated[int, Ge(1)] = 1
    min_item_events: Annotated[int, Ge(1)] = 1


class SplitSettings(_Section):
    """What training may see.

    Attributes:
        strategy: `leave_one_out` (last = test, second last = validation), `latest` (last = validation, no test) or
            `global_time` (before the first cut = training, then validation, after the second cut = test).
        quantiles: of the positive events' times; the two cuts of `global_time`.
        cut_times: the two cuts themselves, in microseconds; overrule the quantiles.
    """

    strategy: Literal["leave_one_out", "latest", "global_time"] = "leave_one_out"
    quantiles: tuple[Annotated[float, Interval(gt=0, lt=1)], Annotated[float, Interval(gt=0, lt=1)]] = (0.8, 0.9)
    cut_times: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.quantiles[0] >= self.quantiles[1]:
            raise ValueError("the first quantile must be below the second")
        if self.cut_times is not None and self.cut_times[0] >= self.cut_times[1]:
            raise ValueError("the first cut must be before the second")
        return self


class TextSettings(_Section):
    """The item text embedding.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, `hashing` (no model, for machines that cannot run one) or the
            directory of a sentence-transformers model.
        max_tokens: longer texts are cut.
        precision: `bfloat16` differs from `float32` by less than .001 in cosine and is three times as fast where
            the processor has it; `auto` asks the processor.
    """

    model: str = PACKAGED_MODEL
    max_tokens: Annotated[int, Ge(8)] = 96
    precision: Literal["auto", "bfloat16", "float32"] = "auto"


class CooccurrenceSettings(_Section):
    """Item pairs at most `window` positions apart; a pair at distance d adds window + 1 - d."""

    window: Annotated[int, Ge(1)] = 5


class CollaborativeSettings(_Section):
    """Item vectors from co-occurrence: truncated SVD of PPMI, singular values to the power of `exponent`."""

    dimension: Annotated[int, Ge(1)] = 128
    exponent: Annotated[float, Ge(0)] = 0.5
    seed: Annotated[int, Ge(0)] = 0


class ItemToItemSettings(_Section):
    """Neighbours by cosine of co-occurrence counts, damped by `shrink`."""

    neighbours: Annotated[int, Interval(ge=1, le=200)] = 200
    shrink: Annotated[float, Gt(0)] = 10.0


class OfflineSettings(_Section):
    """All settings of the pipeline; a job reruns when its own section changes, and only then."""

    positive_actions: tuple[str, ...] = tuple(str(action) for action in POSITIVE_ACTIONS)
    core: CoreSettings = CoreSettings()
    split: SplitSettings = SplitSettings()
    text: TextSettings = TextSettings()
    cooccurrence: CooccurrenceSettings = CooccurrenceSettings()
    collaborative: CollaborativeSettings = CollaborativeSettings()
    semantic_ids: SemanticIdSettings = SemanticIdSettings()
    item_to_item: ItemToItemSettings = ItemToItemSettings()

    @model_validator(mode="after")
    def _honest(self) -> Self:
        if not self.positive_actions:
            raise ValueError("positive_actions is empty")
        counts_events = self.core.min_user_events > 1 or self.core.min_item_events > 1
        if self.split.strategy == "global_time" and counts_events:
            raise ValueError("a core above 1 counts events after the cut: use it with leave_one_out or latest only")
        return self

    @classmethod
    def load(cls, path: Path) -> OfflineSettings:
        """Read settings from YAML.

        Raises:
            ConfigError: the file is absent or not YAML, or a key is unknown or out of range.
        """
        try:
            value = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"the settings cannot be read: {error}", field="config", value=str(path), remedy="give a YAML file"
            ) from error
        return cls.parse(value)

    @classmethod
    def parse(cls, value: object) -> OfflineSettings:
        """Check plain data, as it comes from YAML or the command line.

        Raises:
            ConfigError: naming the first key that is unknown or out of range.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                str(first["msg"]),
                field=".".join(str(part) for part in first["loc"]) or "settings",
                value=first["input"] if first["loc"] else None,
                remedy="offline/settings.py and recsys/semantic_ids/settings.py list the settings",
            ) from error
