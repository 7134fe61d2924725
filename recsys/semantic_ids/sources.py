"""The vectors that semantic IDs are made from: text, collaboration, or both; collaboration guessed from text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recsys.semantic_ids.fusion import fuse, unit_length

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from recsys.semantic_ids.settings import SemanticIdSettings, Source

    Floats = npt.NDArray[np.float32]


class Ridge(NamedTuple):
    """A linear guess of the collaborative vector: text @ weight + bias.

    Attributes:
        weight: (D_t, D_c).
        bias: (D_c,).
    """

    weight: Floats
    bias: Floats


class Shortening(NamedTuple):
    """A compressor's affine map of a width (`recsys.models.smec.Compressor.fold`).

    Attributes:
        matrix: (d, D_t).
        bias: (d,).
    """

    matrix: Floats
    bias: Floats

    def apply(self, text: Floats) -> Floats:
        """(N, d) of unit length from (N, D_t); a zero row stays one."""
        size = np.linalg.norm(text, axis=1, keepdims=True)
        return unit_length(text @ self.matrix.T + size * self.bias).astype(np.float32)


class RidgeFit(NamedTuple):
    """A fitted guess.

    Attributes:
        ridge: the guess.
        items: that it was fitted on.
        cosine: mean cosine of the true vector and the guess of a fit without that item.
    """

    ridge: Ridge
    items: int
    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingSource:
    """How the vectors of a tokenizer are made; stored with it, since later items must be embedded alike.

    Attributes:
        source: `text`, `collaborative` or `fused`.
        collaborative_weight: of the squared distance, when fused.
        dimension: D of the vectors.
        ridge: fills in the collaboration of items that have text and no interaction; None leaves it 0.
        shortening: makes text vectors shorter before anything else; None leaves them.
    """

    source: Source
    collaborative_weight: float
    dimension: int
    ridge: Ridge | None = None
    shortening: Shortening | None = None

    def embed(self, text: Floats, collaborative: Floats | None = None) -> Floats:
        """The vectors to encode.

        Args:
            text: (N, D_t) as the encoder made them; zero rows are items without text.
            collaborative: (N, D_c); zero rows are items without interactions. None: nobody has any, as with items
                that come later.

        Returns:
            (N, D).
        """
        text = text if self.shortening is None else self.shortening.apply(text)
        if self.source == "text":
            return unit_length(text).astype(np.float32)
        if collaborative is None:
            missing = self.dimension - (text.shape[1] if self.source == "fused" else 0)
            collaborative = np.zeros((len(text), missing), dtype=np.float32)
        if self.ridge is not None:
            rows = fillable(text, collaborative)
            collaborative = collaborative.copy()
            guess = unit_length(text[rows]) @ self.ridge.weight + self.ridge.bias
            collaborative[rows] = unit_length(guess)
        if self.source == "collaborative":
            return unit_length(collaborative).astype(np.float32)
        return fuse(text, collaborative, collaborative_weight=self.collaborative_weight)

    def state(self) -> dict[str, Floats]:
        """`source_weight` and `source_bias` of a ridge, `source_short_<matrix|bias>` of a shortening."""
        ridge = {} if self.ridge is None else {"source_weight": self.ridge.weight, "source_bias": self.ridge.bias}
        if self.shortening is None:
            return ridge
        return ridge | {
            "source_short_matrix": self.shortening.matrix,
            "source_short_bias": self.shortening.bias,
        }

    @classmethod
    def from_state(
        cls, settings: SemanticIdSettings, state: Mapping[str, Floats], *, dimension: int
    ) -> EmbeddingSource:
        """Undo `state`, for vectors of D = `dimension`."""
        ridge = Ridge(state["source_weight"], state["source_bias"]) if "source_weight" in state else None
        held = "source_short_matrix" in state
        short = Shortening(state["source_short_matrix"], state["source_short_bias"]) if held else None
        return cls(settings.source, settings.collaborative_weight, dimension, ridge, short)


def fit_source(
    settings: SemanticIdSettings, text: Floats, collaborative: Floats, shortening: Shortening | None = None
) -> tuple[EmbeddingSource, RidgeFit | None]:
    """The source that the settings ask for, fitted where it has something to fit.

    Args:
        settings: source, weight, fill and ridge.
        text: (I, D_t).
        collaborative: (I, D_c), of training interactions only.
        shortening: of the text, where it is made shorter first.

    Returns:
        The source; and the fit of its ridge, None where it has none or no item has both text and collaboration.
    """
    text = text if shortening is None else shortening.apply(text)
    widths = {"text": text.shape[1], "collaborative": collaborative.shape[1]}
    dimension = widths.get(settings.source, sum(widths.values()))
    fit = fit_ridge(text, collaborative, penalty=settings.ridge) if settings.fill == "predicted" else None
    ridge = None if fit is None else fit.ridge
    return EmbeddingSource(settings.source, settings.collaborative_weight, dimension, ridge, shortening), fit


def fillable(text: Floats, collaborative: Floats) -> npt.NDArray[np.intp]:
    """Rows that have a text and no collaboration."""
    return np.flatnonzero(text.any(axis=1) & ~collaborative.any(axis=1))


def fit_ridge(text: Floats, collaborative: Floats, *, penalty: float) -> RidgeFit | None:
    """Least squares from unit-length text to collaboration, with `penalty` times the squared weights added.

    The fit without an item follows from the fit with it: its residual grows by 1 / (1 - h), where h is the item's own
    entry of the hat matrix.

    Args:
        text: (I, D_t).
        collaborative: (I, D_c).
        penalty: > 0; the bias is not penalised.

    Returns:
        None where fewer than two items have both.
    """
    rows = np.flatnonzero(text.any(axis=1) & collaborative.any(axis=1))
    if len(rows) < 2:
        return None
    inputs, wanted = (values[rows].astype(np.float64) for values in (unit_length(text), np.asarray(collaborative)))
    mean, target = inputs.mean(axis=0), wanted.mean(axis=0)
    centred = inputs - mean  # (n, D_t)
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += penalty
    weight = np.linalg.solve(gram, centred.T @ (wanted - target))  # (D_t, D_c)
    residual = wanted - target - centred @ weight  # (n, D_c)
    leverage = 1 / len(rows) + ((centred @ np.linalg.inv(gram)) * centred).sum(axis=1)  # (n,)
    without = wanted - residual / np.maximum(1 - leverage, 1e-9)[:, None]
    lengths = np.linalg.norm(without, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = float(np.mean((without * wanted).sum(axis=1) / np.maximum(lengths, 1e-12)))
    ridge = Ridge(weight.astype(np.float32), (target - mean @ weight).astype(np.float32))
    return RidgeFit(ridge, len(rows), cosine)
