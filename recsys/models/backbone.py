"""A small pre-norm decoder: RMSNorm, SwiGLU, rotary positions, scaled dot-product attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from recsys.models.frozen import FrozenBackbone

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeEngine = Callable[["Backbone", "Around | None"], "Engine"]

_ROPE_BASE: Final = 10_000.0
EPSILON: Final = 1e-6  # of the norms


class KVCache(NamedTuple):
    """Keys and values of all tokens so far.

    Attributes:
        keys: per layer (B, heads, m, d).
        values: per layer (B, heads, m, d).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Around(NamedTuple):
    """What stands before and behind a backbone that reads one position per item.

    Attributes:
        table: (I + 1, H) inputs: the start, then every item's.
        maps: (H, K), applied to the last state.
    """

    table: Tensor
    maps: Tensor


class Engine(Protocol):
    """Computes a frozen backbone's forward."""

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """See `Backbone.tail`."""

    def read(self, items: Tensor, lengths: Tensor) -> Tensor:
        """From item indices to mapped states in one call, where the engine was made with `Around`.

        Args:
            items: (B, n) int64, oldest first, padded on the right.
            lengths: (B,) items per row.

        Returns:
            (B, K).
        """


class AnyBackbone(Protocol):
    """What a recommender asks of its backbone: `Backbone` below, or one of `recsys.backends`."""

    def __call__(
        self, x: Tensor, *, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """See `Backbone.forward`."""

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """See `Backbone.tail`."""

    def prefill(self, x: Tensor, *, ends: Tensor, count: int) -> tuple[Tensor, KVCache]:
        """See `Backbone.prefill`."""

    def freeze(self, make_engine: MakeEngine | None = None, around: Around | None = None) -> Engine | None:
        """See `Backbone.freeze`."""


def take_tail(hidden: Tensor, ends: Tensor, count: int) -> Tensor:
    """(B, n, H), (B,) -> (B, count, H): the states of positions ends - count + 1..ends."""
    places = ends[:, None] + torch.arange(1 - count, 1, device=hidden.device)  # (B, count)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], places]


def ffn_width(d_model: int, multiple: float) -> int:
    """Inner width of the feed-forward: a multiple of 32, at least 32."""
    return round(d_model * multiple / 32) * 32 or 32


def rotary_frequency(width: int, device: torch.device) -> Tensor:
    """(d / 2,) float32 radians per position of a head of width d."""
    half = width // 2
    return _ROPE_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)


class Rotation(NamedTuple):
    """Cosines and signed sines of a batch's positions, (B, n, 1, 1, d) each, both halves alike but for the sign."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, width: int) -> Rotation:
        """Angles of arXiv:2104.09864, eq. 34: positions (B, n), head width d."""
        angle = positions[..., None, None, None] * rotary_frequency(width, positions.device)
        cos, sin = angle.cos(), angle.sin()
        return cls(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))

    def apply(self, x: Tensor) -> Tensor:
        """Rotate queries and keys (B, n, 2, heads, d), halves convention."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; without a mask causal.

    Args:
        q: (B, heads, n, d).
        k: (B, heads, m, d).
        v: (B, heads, m, d).
        mask: bool, broadcastable to (B, heads, n, m), True where attention is allowed.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    # torch 2.13's CPU kernel is 1.4 to 6 times slower than plain products in bfloat16 at the lengths of histories.
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
    weights = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + bias
    mixed: Tensor = weights.softmax(dim=-1) @ v
    return mixed


class Attention(nn.Module):
    """Multi-head self-attention without biases."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend; returns the output (B, n, H) and all keys and values (B, heads, m + n, d)."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        q, k = rotation.apply(qkv[:, :, :2]).permute(2, 0, 3, 1, 4)  # (B, heads, n, d)
        v = qkv[:, :, 2].transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        mixed = attend(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width)), k, v


class SwiGLU(nn.Module):
    """The gated feed-forward of arXiv:2002.05202, without biases."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, H) -> (B, n, H)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, d_model: int, heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.attention = Attention(d_model, heads)
        self.ffn_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.ffn = SwiGLU(d_model, ffn_width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, H) -> (B, n, H), with the layer's keys and values."""
        mixed, keys, values = self.attention(self.attention_norm(x), rotation, mask, past)
        if not self.training:  # a dropout that does nothing still costs a call
            x = x + mixed
            return x + self.ffn(self.ffn_norm(x)), keys, values
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(self.ffn_norm(x))), keys, values


class Backbone(nn.Module):
    """A stack of blocks and a final norm."""

    def __init__(self, *, d_model: int, layers: int, heads: int, ffn_multiple: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = d_model // heads
        width = ffn_width(d_model, ffn_multiple)
        self.blocks = nn.ModuleList(Block(d_model, heads, width, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(d_model, eps=EPSILON)
        self._frozen: FrozenBackbone | None = None
        self._engine: Engine | None = None

    @torch.inference_mode()
    def freeze(self, make_engine: MakeEngine | None = None, around: Around | None = None) -> Engine | None:
        """For inference with weights that will not change; `train()` ends it.

        Args:
            make_engine: what computes `tail`; None takes `FrozenBackbone`, which computes `prefill` in any case.
            around: for the engine.

        Returns:
            The engine, if one was made.
        """
        self._frozen = self.frozen()
        self._engine = None if make_engine is None else make_engine(self, around)
        return self._engine

    def frozen(self, products: torch.dtype | None = None) -> FrozenBackbone:
        """Its weights laid out for inference; see `FrozenBackbone`."""
        frequency = rotary_frequency(self.head_width, self.norm.weight.device)
        return FrozenBackbone(self, frequency=frequency, epsilon=EPSILON, products=products)

    def train(self, mode: bool = True) -> Self:
        """As torch's; weights that train again no longer fit frozen ones."""
        if mode:
            self._frozen = self._engine = None
        return super().train(mode)

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """The states of each row's last positions, causal, from an empty cache.

        Args:
            x: (B, n, H) embedded tokens at positions 0..n-1; what stands behind a row's end is padding.
            ends: (B,) each row's last position, at least count - 1.
            count: positions wanted per row.

        Returns:
            (B, count, H): positions ends - count + 1..ends.
        """
        if self._engine is not None:
            return self._engine.tail(x, ends=ends, count=count)
        return self.prefill(x, ends=ends, count=count)[0]

    def prefill(self, x: Tensor, *, ends: Tensor, count: int) -> tuple[Tensor, KVCache]:
        """What a beam continues from: as `tail`, and the keys and values of all n positions; never by an engine."""
        if self._frozen is not None:
            states, keys, values = self._frozen.tail(x, ends=ends, count=count)
            return states, KVCache(keys, values)
        hidden, cache = self.forward(x, positions=torch.arange(x.shape[1], device=x.device).expand(len(x), -1))
        return take_tail(hidden, ends, count), cache

    def forward(
        self, x: Tensor, *, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        """Run the decoder.

        Args:
            x: (B, n, H) embedded tokens.
            positions: (B, n) integer positions.
            mask: (B or 1, 1, n, m + n) bool, True where attention is allowed; None = causal (without a cache only).
            cache: keys and values of m earlier tokens.

        Returns:
            hidden states (B, n, H) after the final norm, and the cache of all m + n tokens.
        """
        rotation = Rotation.of(positions, self.head_width)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[layer], cache.values[layer])
            x, k, v = block(x, rotation, mask, past)
            keys.append(k)
            values.append(v)
        hidden = self.norm(x)
        return hidden, KVCache(tuple(keys), tuple(values))
