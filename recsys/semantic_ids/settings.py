"""Settings of the tokenizers."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from pydantic import BaseModel, ConfigDict

Kind = Literal["residual_kmeans", "rq_vae", "product"]


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
