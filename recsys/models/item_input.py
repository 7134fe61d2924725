"""Items at the model's input: codes, ID, text and collaborative vectors summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.models.config import RecommenderConfig

FROZEN_BYTES: Final = 2**29  # of a frozen table, per process
_FREEZE_AT_ONCE: Final = 2**16  # items


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """What the model knows of the items besides its weights.

    Attributes:
        codes: (I, L) int32 semantic IDs.
        text: (I, D_t) float32, the zero vector where there is no text.
        collaborative: (I, D_c) float32, the zero vector where there is no training interaction.
        train_counts: (I,) training interactions; an item with none enters with the 'unknown' ID.
    """

    codes: npt.NDArray[np.int32]
    text: npt.NDArray[np.float32]
    collaborative: npt.NDArray[np.float32]
    train_counts: npt.NDArray[np.int64]


class ItemInput(nn.Module):
    """Embeds items; unseen items have the learned 'unknown' in place of ID and collaboration.

    The feature tables are buffers outside the state dict: they belong to the bundle, not to the weights.
    """

    codes: Tensor
    text: Tensor
    collaborative: Tensor
    known: Tensor

    def __init__(self, config: RecommenderConfig, features: ItemFeatures) -> None:
        super().__init__()
        width = config.d_model
        self.drop_id = config.drop_id
        self.code_embedding = nn.ModuleList(nn.Embedding(size, width) for size in config.codebook_sizes)
        self.id_embedding = nn.Embedding(config.num_items, width) if config.use_item_id else None
        self.text_projection = nn.Linear(config.text_dim, width) if config.text_dim else None
        self.collaborative_projection = (
            nn.Linear(config.collaborative_dim, width, bias=False) if config.collaborative_dim else None
        )
        self.unknown = nn.Parameter(torch.zeros(width))
        for table in (*self.code_embedding, *([self.id_embedding] if self.id_embedding is not None else [])):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("codes", torch.from_numpy(features.codes.astype(np.int64)), persistent=False)
        self.register_buffer("text", torch.from_numpy(np.array(features.text, np.float32)), persistent=False)
        self.register_buffer(
            "collaborative", torch.from_numpy(np.array(features.collaborative, np.float32)), persistent=False
        )
        self.register_buffer("known", torch.from_numpy(features.train_counts > 0), persistent=False)

        self._frozen: Tensor | None = None
        self._frozen_with_codes = False
        self._added_codes: Tensor | None = None  # (A, L) of the items that were added since the weights were trained
        self._added_rest: Tensor | None = None  # (A, H)

    @torch.inference_mode()
    def freeze(self, *, with_codes: bool, start: Tensor | None = None, limit: int = FROZEN_BYTES) -> Tensor | None:
        """Compute every item's input once, for weights that will not change: a look-up in place of some 25 small ops.

        `train()` forgets the table.

        Args:
            with_codes: the table of `forward`, else that of `embed_rest`.
            start: (H,) to stand before the items in the table that is returned.
            limit: bytes; a catalog that would need more stays as it is.

        Returns:
            (I, H), or (I + 1, H) with a start; None where nothing was tabled.
        """
        count, width = len(self.codes), self.unknown.shape[0]
        if count * width * self.unknown.element_size() > limit:
            return None
        compute = self.forward if with_codes else self.embed_rest
        every = torch.arange(count, device=self.codes.device)
        parts = [compute(part) for part in torch.split(every, _FREEZE_AT_ONCE)]
        table = torch.cat(parts if start is None else [start[None], *parts])
        self._frozen = table[-count:]  # (I, H), no copy
        self._frozen_with_codes = with_codes
        return table

    @torch.inference_mode()
    def add_items(self, codes: npt.NDArray[np.integer], text: npt.NDArray[np.float32]) -> None:
        """Let histories hold items I, I + 1, .., which enter with the 'unknown' ID; `train()` forgets them.

        Args:
            codes: (n, L) semantic IDs.
            text: (n, D) text vectors; not read where the model was trained without.
        """
        more = torch.from_numpy(codes.astype(np.int64)).to(self.codes.device)
        rest = self.unknown.detach().expand(len(more), -1)
        if self.text_projection is not None:
            # one by one: the last bits of a product depend on its shape, and items come together or apart
            vectors = torch.from_numpy(text.astype(np.float32)).to(self.unknown)
            rest = rest + torch.cat([self.text_projection(vector) for vector in torch.split(vectors, 1)])
        if self._added_codes is None or self._added_rest is None:
            self._added_codes, self._added_rest = more, rest
        else:
            self._added_codes = torch.cat([self._added_codes, more])
            self._added_rest = torch.cat([self._added_rest, rest])

    def holds_added(self, items: Tensor) -> bool:
        """Whether any of these items was added since the weights were trained."""
        return self._added_codes is not None and bool((items >= len(self.codes)).any())

    def codes_of(self, items: Tensor) -> Tensor:
        """Items (...) -> (..., L)."""
        if self._added_codes is None or not self.holds_added(items):
            return self.codes[items]
        return self._either(items, self.codes[items.clamp(max=len(self.codes) - 1)], self._added_codes)

    def _either(self, items: Tensor, trained: Tensor, added: Tensor) -> Tensor:
        """(..., n): what was computed for items that the model was trained with, else a row of (A, n)."""
        newer = items - len(self.codes)
        return torch.where((newer >= 0)[..., None], added[newer.clamp(min=0)], trained)

    def train(self, mode: bool = True) -> Self:
        """As torch's; weights that train again no longer fit a frozen table."""
        if mode:
            self._frozen = self._added_codes = self._added_rest = None
        return super().train(mode)

    def embed_code(self, level: int, codes: Tensor) -> Tensor:
        """Codes (...) of a level (from 0) -> (..., H)."""
        embedded: Tensor = self.code_embedding[level](codes)
        return embedded

    def embed_rest(self, items: Tensor) -> Tensor:
        """All but the codes: items (...) -> (..., H); ID and collaboration fall away together."""
        if self._added_rest is not None and self.holds_added(items):
            return self._either(items, self.embed_rest(items.clamp(max=len(self.codes) - 1)), self._added_rest)
        if self._frozen is not None and not self._frozen_with_codes:
            return F.embedding(items, self._frozen)
        identity = torch.zeros((*items.shape, self.unknown.shape[0]), device=items.device)
        if self.id_embedding is not None:
            identity = identity + self.id_embedding(items)
        if self.collaborative_projection is not None:
            identity = identity + self.collaborative_projection(self.collaborative[items])
        known = self.known[items]
        if self.training and self.drop_id > 0:
            known = known & (torch.rand(items.shape, device=items.device) >= self.drop_id)
        total = torch.where(known[..., None], identity, self.unknown)
        if self.text_projection is not None:
            total = total + self.text_projection(self.text[items])
        return total

    def forward(self, items: Tensor) -> Tensor:
        """Items (...) int64 -> (..., H), everything summed."""
        if self._added_rest is not None and self._added_codes is not None and self.holds_added(items):
            whole = self._added_rest  # (A, H)
            for level in range(self._added_codes.shape[-1]):
                whole = whole + self.embed_code(level, self._added_codes[:, level])
            return self._either(items, self.forward(items.clamp(max=len(self.codes) - 1)), whole)
        if self._frozen is not None and self._frozen_with_codes:
            return F.embedding(items, self._frozen)
        total = self.embed_rest(items)
        codes = self.codes[items]  # (..., L)
        for level in range(codes.shape[-1]):
            total = total + self.embed_code(level, codes[..., level])
        return total
