"""decoding.yaml: which backbones, beams and threads the decoding benchmark times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.settings_file import load_settings

CONFIG: Final = Path(__file__).with_name("decoding.yaml")
Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSettings(_Strict):
    """Sizes of one backbone; the rest as `recsys.models.RecommenderConfig`."""

    shape: Literal["token", "compact"]
    d_model: Positive
    layers: Positive
    heads: Positive


class DecodingSettings(_Strict):
    """The whole benchmark.

    Attributes:
        seed: of catalogue, weights, histories and the order inside a round.
        items: of the catalogue.
        codebooks: T_1..T_L.
        skew: per level the exponent of the code frequencies, 0 = uniform.
        history: items per request.
        answer: items wanted per request; never more than the beam.
        beams: widths.
        threads: intra-op threads of torch, one after the other.
        rounds: times every method is measured.
        slow_rounds: the same for the methods in `slow`.
        slow: methods measured less often.
        backbones: by name; null leaves one out.
    """

    seed: int
    items: Positive
    codebooks: Annotated[list[Positive], Field(min_length=1)]
    skew: list[Annotated[float, Field(ge=0)]]
    history: Positive
    answer: Positive
    beams: Annotated[list[Positive], Field(min_length=1)]
    threads: Annotated[list[Positive], Field(min_length=1)]
    rounds: Positive
    slow_rounds: Positive
    slow: list[str]
    backbones: dict[str, BackboneSettings | None]

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> DecodingSettings:
        """Read the YAML file; with `quick` its section of that name is laid over the rest.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        return load_settings(cls, path, quick=quick)
