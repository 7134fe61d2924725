"""A small pre-norm decoder: RMSNorm, SwiGLU, rotary positions, scaled dot-product attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

_ROPE_BASE = 10_000.0
_EPSILON = 1e-6


class KVCache(NamedTuple):
    """Keys and values of all tokens so far.

    Attributes:
        keys: per layer (B, heads, m, d).
        values: per layer (B, heads, m, d).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Rotation(NamedTuple):
    """Cosines and sines of a batch's positions, (B, 1, n, d / 2) each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, positions: Tensor, width: int) -> Rotation:
        """Angles of arXiv:2104.09864, eq. 34: positions (B, n), head width d."""
        half = width // 2
        frequency = _ROPE_BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)  # (d/2,)
        angle = positions[:, None, :, None].to(torch.float32) * frequency
        return cls(angle.cos(), angle.sin())

    def apply(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, heads, n, d), halves convention."""
        half = x.shape[-1] // 2
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


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
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotation.apply(q), rotation.apply(k)  # (B, heads, n, d)
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
        self.attention_norm = nn.RMSNorm(d_model, eps=_EPSILON)
        self.attention = Attention(d_model, heads)
        self.ffn_norm = nn.RMSNorm(d_model, eps=_EPSILON)
        self.ffn = SwiGLU(d_model, ffn_width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, H) -> (B, n, H), with the layer's keys and values."""
        mixed, keys, values = self.attention(self.attention_norm(x), rotation, mask, past)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(self.ffn_norm(x))), keys, values


class Backbone(nn.Module):
    """A stack of blocks and a final norm."""

    def __init__(self, *, d_model: int, layers: int, heads: int, ffn_multiple: float, dropout: float) -> None:
        super().__init__()
        self.head_width = d_model // heads
        width = round(d_model * ffn_multiple / 32) * 32 or 32
        self.blocks = nn.ModuleList(Block(d_model, heads, width, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(d_model, eps=_EPSILON)

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
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            past = None if cache is None else (cache.keys[layer], cache.values[layer])
            x, k, v = block(x, rotation, mask, past)
            keys.append(k)
            values.append(v)
        hidden: Tensor = self.norm(x)
        return hidden, KVCache(tuple(keys), tuple(values))
