"""A frozen backbone by torch with its matrix products in bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

if TYPE_CHECKING:
    from torch import Tensor

    from recsys.models.backbone import Around, Backbone


class HalfEngine:
    """`Backbone.tail` with weights of half the size; worth its rounding where the processor multiplies bfloat16.

    Norms, rotations, attention and the residual stream stay in the backbone's precision; states move by about one part
    in a hundred.

    Args:
        backbone: in evaluation mode; its weights are copied.
        around: for `read`; its table is kept, not copied.
    """

    def __init__(self, backbone: Backbone, around: Around | None = None) -> None:
        self._backbone = backbone.frozen(products=torch.bfloat16)
        self._around = around

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """See `recsys.models.backbone.Backbone.tail`."""
        return self._backbone.tail(x, ends=ends, count=count)[0]

    def read(self, items: Tensor, lengths: Tensor) -> Tensor:
        """See `recsys.models.backbone.Engine.read`.

        Raises:
            ValueError: the engine was made without `around`.
        """
        if self._around is None:
            raise ValueError("the engine was made without around")
        places = F.pad(items + 1, (1, 0))  # (B, n + 1) of the table: the start, the items, the start as padding
        x = F.embedding(places, self._around.table)
        return torch.mm(self.tail(x, ends=lengths, count=1)[:, 0], self._around.maps)
