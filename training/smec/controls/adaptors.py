"""Controls that move a vector: Search-Adaptor (arXiv:2310.08750) and Matryoshka-Adaptor (arXiv:2407.20243).

Both add a learned change to the vector, which starts at nothing. The Matryoshka-Adaptor has one change for all widths,
trained jointly; the Search-Adaptor has one of its own per width and needs labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from recsys.errors import ConfigError
from recsys.models.smec import CompressorConfig, check_vectors
from training.smec.course import Terms, principal_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from training.smec.settings import SmecSettings


class _Adaptor(nn.Module, ABC):
    """What both have in common: the turn to principal axes, and a change per width."""

    rotation: Tensor

    def __init__(self, table: Tensor, settings: SmecSettings) -> None:
        super().__init__()
        self.dimension = table.shape[1]
        self.widths = CompressorConfig(self.dimension, settings.halvings).widths
        axes = principal_axes(table) if settings.rotate else torch.eye(self.dimension, device=table.device)
        self.register_buffer("rotation", axes)

    @property
    def module(self) -> nn.Module:
        """See `training.smec.course.Course`; an attribute would make it a part of itself."""
        return self

    @abstractmethod
    def adapted(self, x: Tensor, width: int) -> Tensor:
        """(B, width) from turned vectors (B, N)."""

    @torch.no_grad()
    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """See `training.smec.course.Reducer`.

        Raises:
            ConfigError: no such width.
            InputError: vectors of another width, or not finite.
        """
        check_vectors(vectors, self.dimension)
        if width not in self.widths:
            raise ConfigError("no such width", field="width", value=width, remedy=f"one of {self.widths}")
        given = torch.tensor(vectors).to(self.rotation)
        moved = self.adapted(functional.normalize(given, dim=1) @ self.rotation.T, width)
        kept = moved * given.any(dim=1, keepdim=True)  # a bias would give a zero vector a direction
        short: npt.NDArray[np.float32] = functional.normalize(kept, dim=1).cpu().numpy()
        return short


class _Moving:
    """A phase of an adaptor: some parameters, and the widths that they are trained for."""

    def __init__(self, model: _Adaptor, layers: Sequence[nn.Parameter], widths: Sequence[int]) -> None:
        self._model, self._widths = model, widths
        self.layers = layers
        self.logits: Sequence[nn.Parameter] = []

    @torch.no_grad()
    def inputs(self, table: Tensor) -> Tensor:
        """See `training.smec.course.Phase`."""
        return table @ self._model.rotation.T

    def begin(self, inputs: Tensor) -> None:
        """Nothing depends on the inputs."""

    def paths(self, x: Tensor, generator: torch.Generator) -> list[Tensor]:  # noqa: ARG002 - nothing is drawn
        """See `training.smec.course.Phase`."""
        widest = self._model.adapted(x, self._widths[0])
        return [widest[:, :width] for width in self._widths]

    def moved(self, x: Tensor, paths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See `training.smec.course.Phase`."""
        return paths[0], x[:, : self._widths[0]]


class MatryoshkaAdaptor(_Adaptor):
    """Vector e becomes e + f(e), cut to every width; f has one hidden layer of N units.

    Its losses: neighbours among all vectors (L_topk), all pairs of a batch (L_pair), how far vectors move (L_rec),
    and with labels the rank loss; all widths jointly, N among them.

    Args:
        table: (T, N) unit vectors.
        settings: sizes and weights.
        generator: of the first layer's initial weights.
    """

    def __init__(self, table: Tensor, settings: SmecSettings, generator: torch.Generator) -> None:
        super().__init__(table, settings)
        width = self.dimension
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, width)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.randn(width, width, generator=generator) / width**0.5)
            for zero in (self.hidden.bias, self.out.weight, self.out.bias):
                zero.zero_()
        self.to(table.device)
        self.terms = Terms("corpus", settings.alpha, pair=settings.pair, recovery=settings.recovery)
        self.phases = [_Moving(self, list(self.parameters()), [width, *self.widths])]
        self.steps = settings.steps * settings.halvings

    def adapted(self, x: Tensor, width: int) -> Tensor:
        """See `_Adaptor`."""
        moved: Tensor = x + self.out(torch.relu(self.hidden(x)))
        return moved[:, :width]


class SearchAdaptor(_Adaptor):
    """Vector e becomes e cut to a width, plus a linear map of all of e; one map per width, trained by itself.

    Args:
        table: (T, N) unit vectors.
        settings: sizes and weights.
    """

    def __init__(self, table: Tensor, settings: SmecSettings) -> None:
        super().__init__(table, settings)
        self.maps = nn.ModuleList(nn.Linear(self.dimension, width) for width in self.widths)
        for parameter in self.maps.parameters():
            nn.init.zeros_(parameter)
        self.to(table.device)
        self.terms = Terms("batch", 0.0, recovery=settings.recovery)
        self.phases = [_Moving(self, list(m.parameters()), [w]) for m, w in zip(self.maps, self.widths, strict=True)]
        self.steps = settings.steps

    def adapted(self, x: Tensor, width: int) -> Tensor:
        """See `_Adaptor`."""
        return x[:, :width] + torch.as_tensor(self.maps[self.widths.index(width)](x))
