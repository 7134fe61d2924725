"""Fitting an RQ-VAE: encoder and decoder by gradient, codebooks by moving averages.

Sources: moving-average codebooks from van den Oord et al. (arXiv:1711.00937, appendix A.1); the rotation trick from
Fifty et al. (arXiv:2410.06424, section 4.2); codes that nobody uses are moved onto inputs as in Jukebox
(arXiv:2005.00341, section 3).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody gives it

from recsys.errors import DataError
from recsys.semantic_ids.residual_kmeans import Codebooks, fit_residual_kmeans
from recsys.semantic_ids.rq_vae import RqVae

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from recsys.semantic_ids.rq_vae import Layers
    from recsys.semantic_ids.settings import RqVaeSettings

_TINY = 1e-6


class _Spread(NamedTuple):
    """Mean and scale that the network sees its input through; both are folded into the finished layers."""

    mean: npt.NDArray[np.float32]  # (D,)
    scale: float


def fit_rq_vae(
    vectors: npt.NDArray[np.float32],
    sizes: tuple[int, ...],
    settings: RqVaeSettings,
    *,
    seed: int,
    iterations: int = 25,
    warm: RqVae | None = None,
) -> RqVae:
    """Fit encoder, codebooks and decoder.

    The loss is the squared error of the reconstruction and, times `commitment`, of the latent against its codes. The
    codebooks begin as residual k-means of the first encoder's latents.

    Args:
        vectors: (N, D), N >= 1.
        sizes: T_1..T_L.
        settings: of network and training.
        seed: of weights, batches, initial centroids and revivals.
        iterations: Lloyd iterations of the initial codebooks.
        warm: an earlier fit to go on from, codebooks included.

    Raises:
        DataError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = _Spread(vectors.mean(axis=0), max(float(vectors.std()), _TINY))
    inputs = torch.from_numpy(np.ascontiguousarray((vectors - spread.mean) / spread.scale, dtype=np.float32))  # (N, D)
    widths = (vectors.shape[1], settings.hidden, settings.latent)
    if warm is None:
        encoder, decoder = _new_layers(widths, generator), _new_layers(widths[::-1], generator)
        latents = _apply(encoder, inputs).detach().numpy()
        books = fit_residual_kmeans(latents, sizes, seed=seed, iterations=iterations)
    else:
        encoder, decoder = _unfolded(warm, spread)
        books = warm.books
    batch = min(settings.batch, len(inputs))
    averages = [_Average(torch.from_numpy(level.copy()), batch, settings) for level in books.centroids]
    _train(inputs, encoder, decoder, averages, settings, generator)
    found = Codebooks(tuple(average.codes.numpy() for average in averages))
    return RqVae(*_folded(encoder, decoder, spread), found)


def _train(
    inputs: Tensor,
    encoder: list[Tensor],
    decoder: list[Tensor],
    averages: list[_Average],
    settings: RqVaeSettings,
    generator: torch.Generator,
) -> None:
    optimiser = torch.optim.Adam([*encoder, *decoder], lr=settings.learning_rate)
    pass_gradient = rotated if settings.gradient == "rotation" else straight_through
    batch = min(settings.batch, len(inputs))
    for step in range(settings.steps):
        rows = inputs[torch.randint(len(inputs), (batch,), generator=generator)]  # (B, D)
        latent = _apply(encoder, rows)  # (B, d)
        quantised, residuals, codes = _quantise(latent.detach(), averages)
        error = F.mse_loss(_apply(decoder, pass_gradient(latent, quantised)), rows)
        loss = error + settings.commitment * F.mse_loss(latent, quantised)
        if not bool(torch.isfinite(loss)):
            raise DataError(
                "the RQ-VAE's loss is not finite",
                field="step",
                value=step,
                remedy="lower semantic_ids.rq_vae.learning_rate",
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        revive = (step + 1) % settings.revive_every == 0 and step + 1 < settings.steps
        for average, residual, level in zip(averages, residuals, codes, strict=True):
            average.update(residual, level)
            if revive:
                average.revive(residual, generator)


class _Average:
    """One codebook as the moving average of the residuals that chose each code."""

    def __init__(self, codes: Tensor, batch: int, settings: RqVaeSettings) -> None:
        self.codes = codes  # (T, d)
        self._decay, self._share = settings.decay, settings.revive_below
        self._expected = batch / len(codes)
        self._count = torch.full((len(codes),), self._expected)  # (T,)
        self._sum = codes * self._expected  # (T, d)

    def update(self, residual: Tensor, chosen: Tensor) -> None:
        """Take in a batch: residuals (B, d) and the codes (B,) they chose."""
        fresh = 1 - self._decay
        count = torch.bincount(chosen, minlength=len(self.codes)).to(residual.dtype)
        self._count = self._decay * self._count + fresh * count
        total = torch.zeros_like(self._sum).index_add_(0, chosen, residual)
        self._sum = self._decay * self._sum + fresh * total
        average = self._sum / self._count.clamp_min(_TINY)[:, None]
        # A code that has not been used for long stays where it was: both averages have become nothing.
        self.codes = torch.where(self._count[:, None] > _TINY, average, self.codes)

    def revive(self, residual: Tensor, generator: torch.Generator) -> None:
        """Move codes that are hardly used onto residuals of the batch, drawn at random."""
        dead = torch.nonzero(self._count < self._share * self._expected)[:, 0]
        drawn = residual[torch.randint(len(residual), (len(dead),), generator=generator)]
        self.codes[dead] = drawn
        self._count[dead] = self._expected
        self._sum[dead] = drawn * self._expected


def _quantise(latent: Tensor, averages: list[_Average]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The codes' sum (B, d), and per level the residual (B, d) in front of it and the codes (B,)."""
    residual, residuals, codes = latent, [], []
    for average in averages:
        chosen = torch.cdist(residual, average.codes).argmin(dim=1)
        residuals.append(residual)
        codes.append(chosen)
        residual = residual - average.codes[chosen]
    return latent - residual, residuals, codes


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """`quantised` (B, d) in value; its gradient is handed to `latent` as it is."""
    return latent + (quantised - latent).detach()


def rotated(latent: Tensor, quantised: Tensor) -> Tensor:
    """`quantised` (B, d) in value, as a fixed rotation and scaling of `latent`.

    The gradient is turned and scaled with it, so that it keeps its angle to the vector: R = I - 2 r r' + 2 q e' with
    unit vectors e (latent), q (quantised) and r along e + q. Where e and q are opposite, r has no direction and is
    left out.
    """
    with torch.no_grad():
        length = latent.norm(dim=1, keepdim=True).clamp_min(_TINY)  # (B, 1)
        e = latent / length
        q = F.normalize(quantised, dim=1, eps=_TINY)
        r = F.normalize(e + q, dim=1, eps=_TINY)
        scale = quantised.norm(dim=1, keepdim=True) / length
    along_r = (latent * r).sum(dim=1, keepdim=True)
    along_e = (latent * e).sum(dim=1, keepdim=True)
    turned: Tensor = scale * (latent - 2 * along_r * r + 2 * along_e * q)
    return turned


def _new_layers(widths: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    layers: list[Tensor] = []
    for inward, outward in pairwise(widths):
        bound = (6 / inward) ** 0.5  # keeps the variance through a ReLU (He et al., 2015)
        layers += [
            torch.empty(outward, inward).uniform_(-bound, bound, generator=generator).requires_grad_(),
            torch.zeros(outward).requires_grad_(),
        ]
    return layers


def _apply(layers: list[Tensor], rows: Tensor) -> Tensor:
    for at in range(0, len(layers), 2):
        rows = F.linear(rows.relu() if at else rows, layers[at], layers[at + 1])
    return rows


def _folded(encoder: list[Tensor], decoder: list[Tensor], spread: _Spread) -> tuple[Layers, Layers]:
    """Layers from vectors as they are, and back to them."""
    inward, outward = ([part.detach().numpy() for part in layers] for layers in (encoder, decoder))
    inward[1] = inward[1] - inward[0] @ spread.mean / spread.scale
    inward[0] = inward[0] / spread.scale
    outward[-1] = outward[-1] * spread.scale + spread.mean
    outward[-2] = outward[-2] * spread.scale
    first, second = (tuple((w[i], w[i + 1]) for i in range(0, len(w), 2)) for w in (inward, outward))
    return first, second


def _unfolded(warm: RqVae, spread: _Spread) -> tuple[list[Tensor], list[Tensor]]:
    """The inverse of `_folded`, under the mean and scale of the vectors of today."""
    inward, outward = ([part.copy() for layer in layers for part in layer] for layers in (warm.encoder, warm.decoder))
    inward[1] = inward[1] + inward[0] @ spread.mean
    inward[0] = inward[0] * spread.scale
    outward[-1] = (outward[-1] - spread.mean) / spread.scale
    outward[-2] = outward[-2] / spread.scale
    encoder, decoder = (
        [torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)).requires_grad_() for part in parts]
        for parts in (inward, outward)
    )
    return encoder, decoder
