"""What is trained, in which order, by which losses: one interface for SMEC and the adaptors it is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from recsys.models.smec import Compressor, CompressorConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from training.smec.settings import SmecSettings

Source = Literal["batch", "memory", "corpus"]


class Reducer(Protocol):
    """Vectors in, shorter unit vectors out; what every method is once it is fitted."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the vectors that come out, widest first."""

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """(B, width) of unit length from (B, N)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Which losses a method has beside the rank loss, whose weight is 1 where there are labels.

    Attributes:
        source: where neighbours come from: the batch's own anchors, the cross-batch memory, or all vectors.
        neighbour: weight of the neighbour loss where there are labels; without them it is 1. 0 = none in both cases.
        pair: weight of the same loss over all pairs of anchors, relative to the neighbour loss.
        recovery: weight of how far the vectors are moved.
    """

    source: Source
    neighbour: float
    pair: float = 0.0
    recovery: float = 0.0


class Phase(Protocol):
    """Parameters that are trained together, all others frozen."""

    @property
    def layers(self) -> Sequence[nn.Parameter]:
        """Trained at the learning rate, with weight decay where they are matrices."""

    @property
    def logits(self) -> Sequence[nn.Parameter]:
        """Trained at the logits' rate; the choice of dimensions."""

    def inputs(self, table: Tensor) -> Tensor:
        """(T, D) what the frozen part makes of the vectors (T, N); computed once for the whole phase."""

    def begin(self, inputs: Tensor) -> None:
        """Set initial values that depend on the inputs; called before the first step."""

    def paths(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The vectors (B, d) of every width that the losses are taken of, not of unit length; x is (B, D)."""

    def moved(self, x: Tensor, paths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A path, and the input that it is not to leave; both (B, d)."""


class Course(Reducer, Protocol):
    """A method that is trained."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained and kept."""

    @property
    def terms(self) -> Terms:
        """Its losses."""

    @property
    def phases(self) -> Sequence[Phase]:
        """In their order."""

    @property
    def steps(self) -> int:
        """Of every phase, so that all methods make as many in total."""


class StagePhase:
    """One stage of a compressor.

    Args:
        model: the compressor.
        index: of the stage.
        temperature: of the choice of dimensions.
    """

    def __init__(self, model: Compressor, index: int, temperature: float) -> None:
        self._model, self._index, self._temperature = model, index, temperature
        self._stage = model.stage(index)
        self._counts = [self._stage.width // 2] if model.config.sequential else list(model.widths)

    @property
    def layers(self) -> Sequence[nn.Parameter]:
        """See `Phase`."""
        return [self._stage.delta, self._stage.bias]

    @property
    def logits(self) -> Sequence[nn.Parameter]:
        """See `Phase`."""
        return [] if self._stage.logits is None else [self._stage.logits]

    def inputs(self, table: Tensor) -> Tensor:
        """See `Phase`."""
        return self._model.before(table, self._index)

    @torch.no_grad()
    def begin(self, inputs: Tensor) -> None:
        """Logits start at the logarithm of the mean squares: draws then take dimensions in proportion to these."""
        if self._stage.logits is not None:
            energy = inputs.double().square().mean(dim=0)  # (D,); float64: a sum over all rows
            self._stage.logits.copy_(energy.clamp(min=1e-12).log())

    def paths(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:
        """All outputs, and those of every narrower width; under selection the others are zeros in place."""
        full: Tensor = self._stage(x)
        if self._stage.logits is None:
            return [full, *(full[:, :count] for count in self._counts)]
        masks = self._stage.masks(self._counts, temperature=self._temperature, generator=generator)
        return [full, *(full * mask for mask in masks)]

    def moved(self, x: Tensor, paths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Phase`."""
        return paths[0], x


class CompressorCourse:
    """SMEC, or with its switches off the joint Matryoshka layer (MRL) and everything between.

    Args:
        table: (T, N) unit vectors, for the principal axes.
        settings: switches and sizes.
    """

    def __init__(self, table: Tensor, settings: SmecSettings) -> None:
        config = CompressorConfig(table.shape[1], settings.halvings, settings.sequential, settings.selection)
        self.module = Compressor(config, principal_axes(table) if settings.rotate else None).to(table.device)
        self.terms = Terms("memory" if settings.memory else "batch", settings.alpha)
        self.phases = [StagePhase(self.module, i, settings.temperature) for i in range(len(self.module.stages))]
        self.steps = settings.steps * settings.halvings // len(self.phases)

    @property
    def widths(self) -> tuple[int, ...]:
        """See `Reducer`."""
        return self.module.widths

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """See `Reducer`."""
        return self.module.reduce(vectors, width)


@torch.no_grad()
def principal_axes(vectors: Tensor, mean: Tensor | None = None) -> Tensor:
    """The directions in which vectors are largest, largest first; an orthogonal matrix.

    Without a mean these are of the second moments about 0, and turning by them changes no dot product.

    Args:
        vectors: (T, N).
        mean: (N,) subtracted first.

    Returns:
        (N, N) float32, one direction a row, its largest component positive.
    """
    exact = vectors.double() if mean is None else vectors.double() - mean.double()
    _, axes = torch.linalg.eigh(exact.T @ exact)  # columns, of rising size
    axes = axes.flip(1).T
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))  # (N, 1); else the sign is the library's whim
    turned: Tensor = (axes * largest.sign()).float().contiguous()
    return turned
