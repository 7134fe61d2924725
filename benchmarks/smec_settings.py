"""smec.yaml: which methods are fitted, with what, and what is chosen for them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmarks.settings_file import load_settings
from training.smec.settings import SmecSettings

CONFIG: Final = Path(__file__).with_name("smec.yaml")
Kind = Literal["truncation", "pca", "compressor", "matryoshka_adaptor", "search_adaptor"]
Regime = Literal["supervised", "unsupervised"]
REGIMES: Final[tuple[Regime, ...]] = ("supervised", "unsupervised")
UNTRAINED: Final = ("truncation", "pca")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(_Strict):
    """One row of the tables.

    Attributes:
        kind: what is fitted.
        title: how tables call it.
        settings: over the benchmark's.
        ablation: whether it stands in the table of SMEC's parts, not among the controls.
    """

    kind: Kind
    title: str
    settings: dict[str, Any] = {}
    ablation: bool = False

    def fits(self, regime: Regime) -> bool:
        """Whether it is measured there: Search-Adaptor is nothing without labels, PCA and truncation use none."""
        if self.kind in UNTRAINED:
            return regime == "unsupervised"
        return self.kind != "search_adaptor" or regime == "supervised"


class BenchSettings(_Strict):
    """The whole benchmark; smec.yaml says what each field is."""

    seeds: Annotated[list[int], Field(min_length=1)]
    replicates: int = Field(1000, ge=1)
    rows: int = Field(1000, ge=1)
    cases: int = Field(2000, ge=1)
    holdout: float = Field(0.25, gt=0, lt=1)
    choice_seed: int = 100
    settings: dict[str, Any] = {}
    grid: dict[Regime, dict[str, list[Any]]]
    own: dict[Kind, dict[str, list[Any]]] = {}
    methods: dict[str, Method]
    taken_apart: list[str] | None = None

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        for regime in REGIMES:
            for method in self.methods.values():
                for choice in self.choices(regime, method):
                    self.of(method, choice)
        return self

    def measures(self, method: Method, dataset: str) -> bool:
        """Whether a method is fitted to a data set: SMEC's parts are where `taken_apart` names it, or is null."""
        return not method.ablation or self.taken_apart is None or dataset in self.taken_apart

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> BenchSettings:
        """Read the YAML file.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        return load_settings(cls, path, quick=quick)

    def choices(self, regime: Regime, method: Method) -> list[dict[str, Any]]:
        """All combinations of the grid that a method has; PCA chooses whether the mean is subtracted."""
        if method.kind == "truncation":
            return [{}]
        if method.kind == "pca":
            return [{"centred": False}, {"centred": True}]
        own = self.own.get(method.kind, {}) if regime == "supervised" else {}
        grid = {**self.grid.get(regime, {}), **own}
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def of(self, method: Method, choice: dict[str, Any]) -> SmecSettings:
        """What a method is fitted with.

        Raises:
            ConfigError: a field that is unknown or out of range.
        """
        known = {} if method.kind in UNTRAINED else choice
        return SmecSettings.parse({**self.settings, **method.settings, **known})
