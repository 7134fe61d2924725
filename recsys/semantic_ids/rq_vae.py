"""Residual quantisation of what an encoder makes of the vector: the tokenizer `rq_vae`, without torch.

Source: RQ-VAE (Lee et al., arXiv:2203.01941), as TIGER (arXiv:2305.05065, section 3.1) uses it for items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.semantic_ids.residual_kmeans import Codebooks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from recsys.semantic_ids.settings import Kind

    Floats = npt.NDArray[np.float32]
    Layers = tuple[tuple[Floats, Floats], ...]  # weight (out, in), bias (out,)


@dataclass(frozen=True, slots=True, eq=False)
class RqVae:
    """Encoder, codebooks over its output, decoder.

    Attributes:
        encoder: D to latent; ReLU between the layers.
        decoder: latent to D.
        books: residual codebooks of the latent.
    """

    encoder: Layers
    decoder: Layers
    books: Codebooks

    @property
    def kind(self) -> Kind:
        """`rq_vae`."""
        return "rq_vae"

    @property
    def centroids(self) -> tuple[Floats, ...]:
        """L arrays (T_l, latent)."""
        return self.books.centroids

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""
        return self.books.sizes

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.encoder[0][0].shape[1])

    def encode(self, vectors: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
        """Codes (N, L) of vectors (N, D), and the latent residuals (N, latent) before the last level."""
        return self.books.encode(apply_layers(self.encoder, vectors))

    def reconstruct(self, codes: npt.NDArray[np.int32]) -> Floats:
        """Vectors (N, D) of codes (N, L)."""
        return apply_layers(self.decoder, self.books.reconstruct(codes))

    def state(self) -> dict[str, Floats]:
        """`codebook_<level>`, `encoder_<layer>_weight` and so on."""
        found = self.books.state()
        for name, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for number, (weight, bias) in enumerate(layers):
                found |= {f"{name}_{number}_weight": weight, f"{name}_{number}_bias": bias}
        return found

    @classmethod
    def from_state(cls, state: Mapping[str, Floats]) -> RqVae:
        """Undo `state`.

        Raises:
            KeyError: naming what is missing.
        """
        return cls(_layers(state, "encoder"), _layers(state, "decoder"), Codebooks.from_state(state))

    def relabelled(self, order: Sequence[npt.NDArray[np.intp]]) -> RqVae:
        """The same codebooks in another order per level."""
        return RqVae(self.encoder, self.decoder, self.books.relabelled(order))


def apply_layers(layers: Layers, rows: Floats) -> Floats:
    """Affine layers with ReLU between them, (N, in) to (N, out)."""
    for number, (weight, bias) in enumerate(layers):
        rows = (np.maximum(rows, 0) if number else rows) @ weight.T + bias
    return rows


def _layers(state: Mapping[str, Floats], name: str) -> Layers:
    numbers = [0, *(n for n in range(1, len(state)) if f"{name}_{n}_weight" in state)]  # the first must be there
    return tuple((state[f"{name}_{n}_weight"], state[f"{name}_{n}_bias"]) for n in numbers)
