"""The weights of a draft head as arrays, and what they compute.

For levels l = 1..L (index l - 1 in every tuple), hidden states h_0..h_L and a state s per beam:

    s_1     = h_0
    logit_l = W_l f(h_l, s_l) + b_l                with f = sum or concatenation [h_l ; s_l]
    s_{l+1} = cell_l(input = E_l[t_l], state = s_l)    a torch RNNCell (tanh) or GRUCell; 'none' keeps s_l

Source: NEZHA, arXiv:2511.18793, section 4; the GRU cell and the concatenation are variants for ablations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    from torch import nn

    from recsys.models.head import DraftHead

Transition = Literal["rnn", "gru", "none"]
Fusion = Literal["add", "concat"]


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """The weights of a draft head in torch's layouts.

    Attributes:
        transition: the cell between two levels.
        fusion: how the hidden state and the beam's state meet before the output layer.
        output: L arrays (T_l, H), or (T_l, 2H) for `concat` with the hidden state's columns first.
        output_bias: L arrays (T_l,), or None for no bias.
        codes: L - 1 arrays (T_l, E), code embeddings of the transitions; empty for `none`.
        input_weight: L - 1 arrays weight_ih, (H, E) or (3H, E) in the gate order r, z, n.
        state_weight: L - 1 arrays weight_hh, (H, H) or (3H, H).
        input_bias: L - 1 arrays bias_ih, (H,) or (3H,).
        state_bias: L - 1 arrays bias_hh, (H,) or (3H,).
        item_output: (I, H), or (I, 2H) for `concat`, the items' own output rows, or None: from the second level on
            the mean of the items below a prefix is added to W_l's row of its last code.
    """

    transition: Transition
    fusion: Fusion
    output: tuple[npt.NDArray[np.floating], ...]
    output_bias: tuple[npt.NDArray[np.floating], ...] | None = None
    codes: tuple[npt.NDArray[np.floating], ...] = ()
    input_weight: tuple[npt.NDArray[np.floating], ...] = ()
    state_weight: tuple[npt.NDArray[np.floating], ...] = ()
    input_bias: tuple[npt.NDArray[np.floating], ...] = ()
    state_bias: tuple[npt.NDArray[np.floating], ...] = ()
    item_output: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        moves = 0 if self.transition == "none" else self.levels - 1
        for field in ("codes", "input_weight", "state_weight", "input_bias", "state_bias"):
            if len(getattr(self, field)) != moves:
                raise DataError(
                    f"a {self.transition} head of {self.levels} levels has {moves} transitions",
                    field=field,
                    value=len(getattr(self, field)),
                )

    @classmethod
    def of(cls, head: DraftHead) -> HeadWeights:
        """Copy the weights of a torch head; half precisions become float32."""
        cells = list(head.cells)
        return cls(
            transition=head.transition,
            fusion=head.fusion,
            output=_arrays(head.outputs, "weight"),
            codes=_arrays(head.code_embedding, "weight"),
            input_weight=_arrays(cells, "weight_ih"),
            state_weight=_arrays(cells, "weight_hh"),
            input_bias=_arrays(cells, "bias_ih"),
            state_bias=_arrays(cells, "bias_hh"),
            item_output=None if head.item_output is None else _arrays([head.item_output], "weight")[0],
        )

    @property
    def levels(self) -> int:
        """L, the number of codes of a semantic ID."""
        return len(self.output)

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_1..T_L."""
        return tuple(len(weight) for weight in self.output)


def _arrays(modules: Iterable[nn.Module], name: str) -> tuple[npt.NDArray[np.floating], ...]:
    weights = (module.get_parameter(name).detach() for module in modules)
    return tuple(weight.to(torch.promote_types(weight.dtype, torch.float32)).cpu().numpy().copy() for weight in weights)
