"""SMEC's compressor: vectors of any encoder, made shorter step by step (arXiv:2510.12474).

A *stage* is a square linear layer and a choice of half of its outputs. Sequential compression (SMRL: one halving after
the other) stacks stages: what stage 1 keeps of N dimensions enters stage 2, which keeps N/4, and so on; the vector of
width N/2^s has passed s stages. Joint compression (Matryoshka, arXiv:2205.13147) has one stage whose outputs are cut to
every width. Which outputs are kept is learned (ADS: Gumbel top-k in training, the largest logits when served) or simply
the first.

A vector is brought to unit length before the first stage, as all vectors were in training, and after the last.
Everything between is affine, so a whole stack is served as one matrix and one bias per width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CompressorConfig:
    """Sizes and switches of a compressor.

    Attributes:
        dimension: N of the vectors that go in.
        halvings: the narrowest width is N / 2^halvings.
        sequential: one stage per halving (SMRL); else one stage for all widths.
        selection: learned choice of dimensions (ADS); else the first ones.

    Raises:
        ConfigError: a width is not an integer, or there is nothing to halve.
    """

    dimension: int
    halvings: int
    sequential: bool = True
    selection: bool = True

    def __post_init__(self) -> None:
        if self.halvings < 1 or self.dimension < 1 or self.dimension % 2**self.halvings:
            raise ConfigError(
                f"a width of {self.dimension} cannot be halved {self.halvings} times",
                field="halvings",
                value=self.halvings,
                remedy="take fewer halvings, at least one, or vectors of another width",
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """N/2, N/4, ... N/2^halvings."""
        return tuple(self.dimension >> step for step in range(1, self.halvings + 1))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: unknown or missing fields, or sizes that do not fit.
        """
        try:
            return cls(**value)
        except TypeError as error:
            raise ConfigError(f"not the configuration of a compressor: {error}", field="config", value=value) from error


class Stage(nn.Module):
    """A square linear layer that starts as the identity, and a ranking of its outputs.

    Args:
        width: D of input and output.
        selection: whether the ranking is learned.
    """

    def __init__(self, width: int, *, selection: bool) -> None:
        super().__init__()
        self.width = width
        # the layer is x + delta x, so that weight decay pulls towards the vectors as they are
        self.delta = nn.Parameter(torch.zeros(width, width))  # (D, D)
        self.bias = nn.Parameter(torch.zeros(width))  # (D,)
        self.logits = nn.Parameter(torch.zeros(width)) if selection else None  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """All outputs: (B, D) from (B, D)."""
        return x + functional.linear(x, self.delta, self.bias)

    @torch.no_grad()
    def kept(self, count: int) -> Tensor:
        """(count,) the outputs kept when served, ascending: those of the largest logits, the smaller index first."""
        if self.logits is None:
            return torch.arange(count, device=self.delta.device)
        order = torch.argsort(self.logits, descending=True, stable=True)
        return order[:count].sort().values

    def masks(self, counts: Sequence[int], *, temperature: float, generator: torch.Generator) -> list[Tensor]:
        """One (D,) mask of zeros and ones per count, drawn together, so that a smaller one lies inside a larger.

        ADS: z = softmax((logits + g) / temperature) with g from Gumbel(0, 1), and the count largest of z are kept.
        Forwards the mask is exactly 0 or 1, backwards it has the gradient of z (straight-through). Without selection
        nothing is drawn.

        Args:
            counts: ones of each mask.
            temperature: of the softmax.
            generator: of the draws, on the CPU.
        """
        if self.logits is None:
            return [(torch.arange(self.width, device=self.delta.device) < count).float() for count in counts]
        noise = -torch.empty(self.width).exponential_(generator=generator).log_()  # (D,)
        perturbed = self.logits + noise.to(self.logits.device)  # (D,)
        soft = torch.softmax(perturbed / temperature, dim=0)  # (D,)
        # not by the softmax: at a low temperature many of its values are 0, and alike
        order = torch.argsort(perturbed.detach(), descending=True, stable=True)
        masks = []
        for count in counts:
            hard = torch.zeros_like(soft.detach())
            hard[order[:count]] = 1.0
            masks.append(hard + (soft - soft.detach()))
        return masks


class Compressor(nn.Module):
    """Vectors of width N to unit vectors of N/2, N/4, ...; deterministic.

    Args:
        config: sizes and switches.
        rotation: (N, N) applied first and never trained, for instance the principal axes; None = none.

    Raises:
        ConfigError: the rotation has another shape.
    """

    rotation: Tensor

    def __init__(self, config: CompressorConfig, rotation: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.dimension
        if rotation is not None and rotation.shape != (width, width):
            raise ConfigError(f"the rotation must be ({width}, {width})", field="rotation", value=tuple(rotation.shape))
        self.register_buffer("rotation", torch.eye(width) if rotation is None else rotation.clone())
        count = config.halvings if config.sequential else 1
        self.stages = nn.ModuleList(Stage(width >> index, selection=config.selection) for index in range(count))

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the vectors that come out, widest first."""
        return self.config.widths

    def stage(self, index: int) -> Stage:
        """The stage of this index, from 0."""
        stage = self.stages[index]
        assert isinstance(stage, Stage)  # noqa: S101 - for the type checker
        return stage

    @torch.no_grad()
    def before(self, vectors: Tensor, index: int) -> Tensor:
        """What enters a stage, from the stages before it as they are served: (B, N/2^index) from (B, N)."""
        x = vectors @ self.rotation.T
        for earlier in range(index):
            stage = self.stage(earlier)
            x = stage(x)[:, stage.kept(stage.width // 2)]
        return x

    def forward(self, vectors: Tensor, width: int) -> Tensor:
        """Compress.

        Args:
            vectors: (B, N).
            width: one of `widths`, or N, which is the vectors themselves.

        Returns:
            (B, width) of unit length, whatever the length of what went in; a zero vector stays one.

        Raises:
            ConfigError: no such width.
        """
        if width == self.config.dimension:
            return functional.normalize(vectors, dim=1)
        last = self._last_stage(width)
        x = functional.normalize(vectors, dim=1) @ self.rotation.T
        for index in range(last + 1):
            stage = self.stage(index)
            x = stage(x)[:, stage.kept(stage.width // 2 if index < last else width)]
        return functional.normalize(x * vectors.any(dim=1, keepdim=True), dim=1)

    @torch.no_grad()
    def fold(self, width: int) -> tuple[Tensor, Tensor]:
        """The stack of a width as one affine map, computed in float64.

        Returns:
            matrix (width, N) and bias (width,), float32: vector x becomes matrix x + |x| bias, then unit length.

        Raises:
            ConfigError: no such width.
        """
        matrix = self.rotation.double()  # (N, N)
        bias = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
        if width == self.config.dimension:
            return torch.eye(width, device=matrix.device), bias.float()
        last = self._last_stage(width)
        for index in range(last + 1):
            stage = self.stage(index)
            layer = stage.delta.double() + torch.eye(stage.width, dtype=torch.float64, device=matrix.device)
            kept = stage.kept(stage.width // 2 if index < last else width)
            matrix, bias = (layer @ matrix)[kept], (layer @ bias + stage.bias.double())[kept]
        return matrix.float(), bias.float()

    def reduce(self, vectors: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
        """Compress by the folded map: (B, width) float32 of unit length from (B, N); a zero vector stays one.

        Raises:
            ConfigError: no such width.
            InputError: vectors of another width, or not finite.
        """
        check_vectors(vectors, self.config.dimension)
        matrix, bias = self.fold(width)
        given = torch.tensor(vectors).to(matrix)  # a copy: a mapped array cannot be written to
        projected = given @ matrix.T + given.norm(dim=1, keepdim=True) * bias  # (B, width)
        unit: npt.NDArray[np.float32] = functional.normalize(projected, dim=1).cpu().numpy()
        return unit

    def _last_stage(self, width: int) -> int:
        if width not in self.widths:
            raise ConfigError(
                "the compressor has no such width",
                field="width",
                value=width,
                remedy=f"one of {', '.join(map(str, (self.config.dimension, *self.widths)))}",
            )
        return self.widths.index(width) if self.config.sequential else 0


def check_vectors(vectors: npt.NDArray[np.floating], dimension: int) -> None:
    """Refuse what no compressor can take.

    Raises:
        InputError: not (B, dimension), or a component that is no finite number; names the row.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise InputError(
            f"vectors must be (B, {dimension})",
            field="vectors",
            value=vectors.shape,
            remedy="take vectors of the encoder that the compressor was trained on",
        )
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise InputError(
            "a vector holds NaN or infinity",
            field="vectors",
            value=f"row {bad[0]} of {len(vectors)}",
            remedy="leave it out, or encode its text again",
        )
