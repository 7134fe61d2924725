"""verifier.yaml: which catalogues and changes the verifier's benchmark measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.settings_file import load_settings

CONFIG: Final = Path(__file__).with_name("verifier.yaml")
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrunkSettings(_Strict):
    """Sizes of the compact model that decodes."""

    d_model: Positive
    layers: Positive
    heads: Positive


class VerifierSettings(_Strict):
    """The whole benchmark; see the comments of the file.

    Attributes:
        seed: of catalogues, weights, requests and changes.
        catalogues: codebook sizes by number of items; null leaves one out.
        skew: per level the exponent of the code frequencies.
        model: sizes of the compact model.
        engine: of its forward.
        known: items that histories are drawn from.
        history: items per request.
        excluded: items of a request's own list, beside its history.
        beam: width.
        answer: items wanted.
        segments: share of the items in each named set.
        requested: sets that a request names.
        kept: intersections that are kept current while items change.
        rounds: of the masks' share.
        batch: changes that are applied together.
        seconds: of changes under load, per structure and size of batch.
        witnesses: whole answers that a change is looked for in.
        bitset_rounds: times an arbitrary set is counted.
    """

    seed: int
    catalogues: dict[Positive, list[Positive] | None]
    skew: list[Annotated[float, Field(ge=0)]]
    model: TrunkSettings
    engine: str
    known: Positive
    history: Positive
    excluded: Positive
    beam: Positive
    answer: Positive
    segments: dict[str, Share]
    requested: list[str]
    kept: list[list[str]]
    rounds: Positive
    batch: Positive
    seconds: Annotated[float, Field(gt=0)]
    witnesses: Positive
    bitset_rounds: Positive

    @classmethod
    def load(cls, path: Path = CONFIG, *, quick: bool = False) -> VerifierSettings:
        """Read the YAML file; with `quick` its section of that name is laid over the rest.

        Raises:
            ConfigError: not YAML, or a field that is unknown or out of range.
        """
        return load_settings(cls, path, quick=quick)
