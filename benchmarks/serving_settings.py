"""Settings of `windfire bench serving`; benchmarks/serving.yaml explains each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.settings_file import load_settings

CONFIG: Final = Path(__file__).with_name("serving.yaml")
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Rate = Annotated[float, Field(gt=0)]
Cores = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundleShape(_Section):
    """Sizes of a synthetic bundle."""

    items: Annotated[int, Field(ge=50)]
    codebook: Annotated[int, Field(ge=2)]
    text: Positive
    d_model: Positive
    layers: Positive
    heads: Positive


class KneeSettings(_Section):
    """The sweep, and the loads at shares of the knee."""

    start: Rate
    lowest: Rate
    highest: Rate
    precision: Rate
    seconds: Seconds
    least: Annotated[int, Field(ge=250)]
    warmup: Annotated[float, Field(ge=0)]
    pause: Annotated[float, Field(ge=0)]
    loads: list[Annotated[float, Field(gt=0, lt=1)]]
    overload: Annotated[float, Field(gt=1)]
    load_seconds: Seconds
    load_least: Positive


class FaultSettings(_Section):
    """The fault matrix."""

    names: list[str]
    rate: Rate | None = None
    share: Annotated[float, Field(gt=0, le=1)]
    vllm_share: Annotated[float, Field(gt=0, le=1)]
    seconds: Seconds
    least: Positive
    warmup: Annotated[float, Field(ge=0)]


class OverheadSettings(_Section):
    """CPU around the decode."""

    requests: Annotated[int, Field(ge=20)]
    warm_up: Annotated[int, Field(ge=0)]
    rounds: Positive


class SwapSettings(_Section):
    """Bundles that change under load."""

    items: Annotated[int, Field(ge=50)]
    workers: Positive
    engine: bool
    rate: Rate
    swaps: Positive
    rollbacks: Annotated[int, Field(ge=0)]
    pause: Seconds


class CheckerSettings(_Section):
    """Items that come and go under load."""

    items: Annotated[int, Field(ge=50)]
    workers: Positive
    answers: Positive
    rate: Rate
    changes: Positive
    restart: Seconds
    in_process: Annotated[int, Field(ge=0)]


class MemorySettings(_Section):
    """Front-ends over a large catalogue."""

    items: Annotated[int, Field(ge=50)]
    workers: Positive
    requests: Positive


class SoakSettings(_Section):
    """A long run."""

    rate: Rate | None = None
    share: Annotated[float, Field(gt=0, le=1)]
    seconds: Seconds
    window: Seconds


class ServingSettings(_Section):
    """The whole benchmark."""

    seed: int
    deadline: Seconds
    timeout: Seconds
    connections: Positive
    server_cores: Cores
    client_cores: Cores
    users: Positive
    history: Positive
    n: Annotated[int, Field(ge=1, le=500)]
    beam: Positive
    bundle: BundleShape
    knee: KneeSettings
    faults: FaultSettings
    overhead: OverheadSettings
    swap: SwapSettings
    checker: CheckerSettings
    memory: MemorySettings
    soak: SoakSettings

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> Self:
        """Read the settings.

        Raises:
            ConfigError: see `load_settings`.
        """
        return load_settings(cls, path, quick=quick)
