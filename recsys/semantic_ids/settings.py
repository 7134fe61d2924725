"""Settings of semantic IDs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from annotated_types import Ge, Gt, Interval
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["residual_kmeans", "rq_vae", "product"]
Policy = Literal["reassign", "extra_digit", "buckets"]
Source = Literal["text", "collaborative", "fused"]
Fill = Literal["zero", "predicted"]
_FROM_THE_FIRST: Final = ("collaborative_weight", "codebook_sizes", "seed", "iterations", "threads")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RqVaeSettings(_Section):
    """Residual quantisation inside an autoencoder.

    Attributes:
        hidden: width of the one hidden layer of encoder and decoder.
        latent: width of what is quantised.
        steps: optimiser steps.
        batch: vectors per step.
        learning_rate: of Adam.
        commitment: weight of the squared distance between a latent and its code.
        gradient: how it passes the quantiser: `straight_through` or the `rotation` trick.
        decay: of the moving averages that the codebooks are made of.
        revive_below: a code used less than this share of the average is moved onto a latent of the batch.
        revive_every: steps between two looks for such codes.
    """

    hidden: Annotated[int, Ge(1)] = 256
    latent: Annotated[int, Ge(1)] = 32
    steps: Annotated[int, Ge(0)] = 1500
    batch: Annotated[int, Ge(1)] = 1024
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    commitment: Annotated[float, Ge(0)] = 0.25
    gradient: Literal["straight_through", "rotation"] = "rotation"
    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    revive_below: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    revive_every: Annotated[int, Ge(1)] = 50


class ProductSettings(_Section):
    """Product quantisation: every code stands for one block of the vector.

    Attributes:
        rounds: of the search for a rotation that suits the blocks (OPQ); 0 leaves the vectors as they are (PQ).
    """

    rounds: Annotated[int, Ge(0)] = 10


class TokenizerSettings(_Section):
    """How a tokenizer is fitted.

    Attributes:
        kind: of tokenizer.
        codebook_sizes: T_1..T_L.
        iterations: Lloyd iterations per codebook, where k-means makes or begins it.
        rq_vae: read by `rq_vae` only.
        product: read by `product` only.
    """

    kind: Kind = "residual_kmeans"
    codebook_sizes: tuple[Annotated[int, Ge(1)], ...]
    iterations: Annotated[int, Ge(1)] = 25
    rq_vae: RqVaeSettings = RqVaeSettings()
    product: ProductSettings = ProductSettings()


def _guessed(before: Mapping[str, Any]) -> Fill:
    """The default of `fill`, by the fields before it."""
    return "predicted" if before.get("source") == "fused" else "zero"


class SemanticIdSettings(_Section):
    """Semantic IDs of a catalogue: what is encoded, by which tokenizer, and what becomes of collisions.

    Attributes:
        collaborative_weight: share of the squared distance that comes from the collaborative vectors, when fused.
        codebook_sizes: T_1..T_L; where absent those of `warm_start`, else chosen by the number of items.
        seed: of every random choice.
        iterations: Lloyd iterations per codebook.
        threads: 1 gives the same bits on every machine of one kind; more for catalogues of 10^6 items and up.
        tokenizer: `residual_kmeans`, `rq_vae` or `product`.
        rq_vae: read by `rq_vae` only.
        product: read by `product` only.
        collisions: `reassign`, `extra_digit` or `buckets`.
        source: vectors of `text`, of `collaborative` training interactions, or `fused`.
        fill: collaboration of an item that has none: `zero`, or `predicted` from its text, which is the default where
            `source` is fused.
        ridge: penalty of that prediction.
        warm_start: a work directory whose tokenizer this one begins with, and whose code numbers it keeps.
        compressor: a run of `windfire train smec` on the text vectors: they are made shorter first; None = as they are.
        compressor_width: of the shorter text vectors, one of the run's.
    """

    collaborative_weight: Annotated[float, Interval(ge=0, le=1)] = 0.5
    codebook_sizes: tuple[Annotated[int, Ge(1)], ...] | None = None
    seed: Annotated[int, Ge(0)] = 0
    iterations: Annotated[int, Ge(1)] = 25
    threads: Annotated[int, Ge(1)] = 1
    tokenizer: Kind = "residual_kmeans"
    rq_vae: RqVaeSettings = RqVaeSettings()
    product: ProductSettings = ProductSettings()
    collisions: Policy = "reassign"
    source: Source = "fused"
    fill: Fill = Field(default_factory=_guessed)
    ridge: Annotated[float, Gt(0)] = 1.0
    warm_start: Path | None = None
    compressor: Path | None = None
    compressor_width: Annotated[int, Ge(1)] = 48

    @model_validator(mode="after")
    def _reads_text(self) -> Self:
        if self.source == "text" and self.fill == "predicted":
            raise ValueError("source text reads no collaboration: there is nothing to fill")
        if self.compressor is not None and self.source == "collaborative" and self.fill == "zero":
            raise ValueError("source collaborative reads no text: there is nothing to make shorter")
        return self

    def fitting(self, sizes: tuple[int, ...]) -> TokenizerSettings:
        """What the tokenizer reads, for codebooks of these sizes."""
        return TokenizerSettings(
            kind=self.tokenizer,
            codebook_sizes=sizes,
            iterations=self.iterations,
            rq_vae=self.rq_vae,
            product=self.product,
        )

    def described(self) -> dict[str, Any]:
        """The settings as an artefact keeps them, JSON-ready: without paths.

        What was settable from the first day is always there, anything else where it differs from its default, so that
        a setting that is added later leaves the bytes of other artefacts alone.
        """
        value = self.model_dump(mode="json", exclude={"warm_start", "compressor"})
        default = SemanticIdSettings().model_dump(mode="json") | {"fill": "zero"}  # the default it was then
        return {name: found for name, found in value.items() if name in _FROM_THE_FIRST or found != default[name]}
