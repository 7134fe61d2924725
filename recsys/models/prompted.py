"""A language model trained elsewhere that writes semantic IDs, behind the interface of the token shape.

Its prompt is an instruction, the history as semantic-ID tokens, and an ending. The texts were tokenised once: a
request's prompt is put together from embedded pieces. Nothing of the language model is trained here; what is fitted to
it are the placeholders' embeddings and the draft head (`Drafting`).

Source: NEZHA (arXiv:2511.18793) for placeholders and head; there the backbone is trained with them, here it is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn

from recsys.errors import ConfigError
from recsys.models.backbone import KVCache, take_tail
from recsys.models.head import DraftHead
from recsys.models.token import Prompt

if TYPE_CHECKING:
    from recsys.models.backbone import AnyBackbone, MakeEngine
    from recsys.models.config import RecommenderConfig


class PromptPieces(NamedTuple):
    """The embedded texts of a prompt; any of them may be empty, but not prefix and suffix both.

    `prefix`, then per item `before`, its L codes and `behind`, items divided by `between`, then `suffix`.

    Attributes:
        prefix: (P, H).
        before: (b, H).
        behind: (a, H).
        between: (g, H).
        suffix: (S, H).
    """

    prefix: Tensor
    before: Tensor
    behind: Tensor
    between: Tensor
    suffix: Tensor


class CodeRows(NamedTuple):
    """The language model's own rows of one level's tokens.

    Attributes:
        inputs: (T, H) embeddings.
        outputs: (T, H) output weights.
        bias: (T,) output bias, or None.
    """

    inputs: Tensor
    outputs: Tensor
    bias: Tensor | None


class Drafting(nn.Module):
    """What is fitted to a frozen backbone.

    At first the head's states are added to nothing: with fusion `concat` the first level then equals the backbone's own
    distribution exactly, because s_1 = h_0 meets the backbone's own output rows.

    Args:
        config: of the recommender; fusion `concat`.
        rows: per level, to begin with.

    Attributes:
        placeholder: (L, H) embeddings behind the prompt.
        head: the draft head.
    """

    def __init__(self, config: RecommenderConfig, rows: Sequence[CodeRows]) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.randn(config.levels, config.d_model) * 0.02)
        self.head = DraftHead(config)
        if config.fusion != "concat" or config.transition == "none":
            return
        with torch.no_grad():
            for level, (output, row) in enumerate(zip(self.head.outputs, rows, strict=True)):
                weight = output.get_parameter("weight")
                weight.copy_(torch.cat([torch.zeros_like(row.outputs), row.outputs], dim=1))
                if level < config.levels - 1:
                    self.head.code_embedding[level].get_parameter("weight").copy_(row.inputs)


class PromptedRecommender(nn.Module):
    """`beam` reads the language model's own next-token distribution, `nezha` and `speculative` the fitted head.

    Args:
        config: of shape `token`; d_model is the language model's width.
        codes: (I, L) int64 semantic IDs.
        pieces: of the prompt.
        rows: per level, the tokens' rows; a code that no item has may hold anything.
        backbone: the language model's decoder, which takes embedded tokens.

    Attributes:
        drafting: placeholders and head.
        drafted: whether they were fitted; before, only `beam` answers.

    Raises:
        ConfigError: a prompt without any text.
    """

    codes: Tensor
    prefix_piece: Tensor
    before_piece: Tensor
    behind_piece: Tensor
    between_piece: Tensor
    suffix_piece: Tensor

    def __init__(
        self,
        config: RecommenderConfig,
        codes: Tensor,
        pieces: PromptPieces,
        rows: Sequence[CodeRows],
        backbone: AnyBackbone,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.drafting = Drafting(config, rows)
        self.drafted = False
        if not len(pieces.prefix) + len(pieces.suffix):
            raise ConfigError(
                "a prompt needs a text before or behind the history: an empty history must have an answer",
                field="prompt",
                value="",
                remedy="give the template a prefix or a suffix",
            )
        self.register_buffer("codes", codes, persistent=False)
        for name, piece in pieces._asdict().items():
            self.register_buffer(f"{name}_piece", piece, persistent=False)
        for level, row in enumerate(rows):
            self.register_buffer(f"input{level}", row.inputs, persistent=False)
            self.register_buffer(f"output{level}", row.outputs, persistent=False)
            self.register_buffer(f"bias{level}", row.bias, persistent=False)
        # All but the prefix's last token is the same for every request; the last one makes the first state.
        self._lead_tokens = max(len(pieces.prefix) - 1, 0)
        self._lead: KVCache | None = None
        gap = len(pieces.between)
        self._gap = gap
        self._per_item = len(pieces.before) + config.levels + len(pieces.behind) + gap

    @property
    def start(self) -> Tensor:
        """Any parameter: tells device and precision."""
        return self.drafting.placeholder

    @property
    def head(self) -> DraftHead:
        """The draft head."""
        return self.drafting.head

    def freeze(self, make_engine: MakeEngine | None = None) -> None:
        """The beginning of every prompt is run now.

        Args:
            make_engine: must be None; the language model's library runs it.
        """
        self.backbone.freeze(make_engine)
        self._leading(1)

    def positions(self, counts: Sequence[int], *, placeholders: bool) -> int:
        """Tokens that a batch of prompts sends through the backbone; the common beginning was run before.

        Args:
            counts: items per history.
            placeholders: whether they stand behind.
        """
        fixed = len(self.prefix_piece) - self._lead_tokens + len(self.suffix_piece)
        fixed += self.config.levels if placeholders else 0
        return sum(fixed + max(count * self._per_item - self._gap, 0) for count in counts)

    def embed_codes(self, level: int, codes: Tensor) -> Tensor:
        """Tokens of a level (from 0): codes (...) -> (..., H)."""
        return self.get_buffer(f"input{level}")[codes]

    def token_logits(self, level: int, hidden: Tensor) -> Tensor:
        """The language model's own scores of the level's tokens: (N, H) -> (N, T_level), float32 at least."""
        rows = self.get_buffer(f"output{level}")
        precision = torch.promote_types(rows.dtype, torch.float32)
        logits = hidden.to(precision) @ rows.to(precision).T
        bias: Tensor | None = getattr(self, f"bias{level}")
        return logits if bias is None else logits + bias.to(precision)

    def encode(self, items: Tensor, lengths: Tensor) -> Tensor:
        """One forward of prompt and placeholders.

        Args:
            items: (B, n) int64 histories, oldest first, padded on the right with -1.
            lengths: (B,) items per history.

        Returns:
            (B, L+1, H): the prompt's last token and the placeholders.
        """
        return self.encode_with_prompt(items, lengths)[0]

    def encode_with_prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Prompt]:
        """`encode` and `encode_prompt` in one forward; the cache holds the placeholders, hidden."""
        levels = self.config.levels
        x, last = self._behind_lead(items, lengths, self.drafting.placeholder)
        hidden, cache = self._run(x)
        states = _precise(take_tail(hidden, last + levels, levels + 1))
        return states, self._prompt(states[:, 0], cache, last)

    def encode_prompt(self, items: Tensor, lengths: Tensor) -> Prompt:
        """The prompt alone: items (B, n) padded with -1, lengths (B,)."""
        x, last = self._behind_lead(items, lengths, None)
        hidden, cache = self._run(x)
        return self._prompt(_precise(take_tail(hidden, last, 1))[:, 0], cache, last)

    def draft_states(self, prompt: Prompt) -> Tensor:
        """What `encode` gives, from a prompt that was run before: (B, L+1, H).

        Gradients reach the placeholders and nothing before them: for fitting.
        """
        levels = self.config.levels
        batch = len(prompt.last)
        x = self.drafting.placeholder.to(self.get_buffer("input0").dtype).expand(batch, -1, -1)
        own = torch.ones(levels, levels, dtype=torch.bool, device=x.device).tril().expand(batch, -1, -1)
        mask = torch.cat([prompt.real[:, None].expand(-1, levels, -1), own], dim=2)[:, None]
        positions = prompt.following[:, None] + torch.arange(levels, device=x.device)
        hidden, _ = self.backbone(x, positions=positions, mask=mask, cache=prompt.cache)
        return torch.cat([prompt.last[:, None], _precise(hidden)], dim=1)

    def extend(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Run further tokens behind a cache.

        Args:
            tokens: (B, k, H) embedded.
            positions: (B, k).
            mask: (B, 1, k, m + k) bool.
            cache: of m tokens.
        """
        hidden, extended = self.backbone(tokens, positions=positions, mask=mask, cache=cache)
        return _precise(hidden), extended

    def _behind_lead(self, items: Tensor, lengths: Tensor, placeholder: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, n', H) what every prompt holds behind the common beginning, and (B,) the last token's place in it."""
        batch, count = items.shape
        width = self.config.d_model
        first = self.prefix_piece[self._lead_tokens :]
        codes = self.codes[items.clamp(min=0)]  # (B, n, L)
        tokens = [self.embed_codes(level, codes[..., level]) for level in range(self.config.levels)]
        around = [piece.expand(batch, count, -1, -1) for piece in (self.before_piece, self.behind_piece)]
        between = self.between_piece.expand(batch, count, -1, -1)
        blocks = torch.cat([around[0], torch.stack(tokens, dim=2), around[1], between], dim=2).flatten(1, 2)
        ending = self.suffix_piece
        if placeholder is not None:
            ending = torch.cat([ending, placeholder.to(ending.dtype)])
        room = blocks.new_zeros(batch, len(ending), width)
        x = torch.cat([first.expand(batch, -1, -1), blocks, room], dim=1)
        end = len(first) + (lengths * self._per_item - self._gap).clamp(min=0)  # (B,)
        places = end[:, None] + torch.arange(len(ending), device=items.device)
        x[torch.arange(batch, device=items.device)[:, None], places] = ending
        return x, end + len(self.suffix_piece) - 1

    def _run(self, x: Tensor) -> tuple[Tensor, KVCache]:
        """Hidden states (B, n', H) behind the common beginning, and the cache of all."""
        batch, count, _ = x.shape
        lead = self._lead_tokens
        positions = torch.arange(lead, lead + count, device=x.device).expand(batch, -1)
        if not lead:
            return self.backbone(x, positions=positions)
        mask = torch.ones(count, lead + count, dtype=torch.bool, device=x.device).tril(lead)
        return self.backbone(x, positions=positions, mask=mask[None, None], cache=self._leading(batch))

    def _prompt(self, last: Tensor, cache: KVCache, place: Tensor) -> Prompt:
        end = self._lead_tokens + place  # (B,)
        real = torch.arange(cache.keys[0].shape[2], device=last.device) <= end[:, None]
        return Prompt(last, cache, real, end + 1)

    def _leading(self, batch: int) -> KVCache | None:
        """Keys and values of the common beginning, run once."""
        if not self._lead_tokens:
            return None
        if self._lead is None:
            x = self.prefix_piece[None, : self._lead_tokens]
            # Kept for decoding and fitting alike: tensors of inference mode could not be used in fitting.
            with torch.inference_mode(mode=False), torch.no_grad():
                _, self._lead = self.backbone(x, positions=torch.arange(x.shape[1], device=x.device)[None])
        keys, values = (tuple(t.expand(batch, -1, -1, -1) for t in part) for part in self._lead)
        return KVCache(keys, values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As torch's; what was run on another device or in another precision is forgotten."""
        self._lead = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _precise(hidden: Tensor) -> Tensor:
    """In float32 at least."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))
