"""Whether a language model, taken apart, still says what it says by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.decoding.histories import pad_histories

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.backends.prompted import PromptTokens
    from recsys.models import PromptedRecommender

_LENGTHS = (0, 1, 4)  # of the histories tried
_TARGETS = 2  # items written behind each


class Expected(NamedTuple):
    """What the model says by itself of one item behind one history.

    Attributes:
        history: item indices.
        target: item index.
        scores: per level (U_l,) log-probabilities over the codes in use.
    """

    history: npt.NDArray[np.int64]
    target: int
    scores: list[Tensor]


@torch.inference_mode()
def expected_scores(
    model: Any,
    codes: npt.NDArray[np.integer],
    prompt: PromptTokens,
    code_tokens: Sequence[Sequence[int]],
    *,
    longest: int,
) -> list[Expected]:
    """Ask the language model itself, token ids in and logits out.

    Args:
        model: of the library, with its head.
        codes: (I, L).
        prompt: as token ids.
        code_tokens: per level (T_l,), -1 = unused.
        longest: items of a history.
    """
    rng = np.random.default_rng(0)
    tokens = [np.asarray(level) for level in code_tokens]
    used = [torch.from_numpy(level)[_used(codes, place)] for place, level in enumerate(tokens)]
    found = []
    for length in _LENGTHS:
        history = rng.integers(len(codes), size=min(length, longest))
        for target in rng.integers(len(codes), size=_TARGETS).tolist():
            items = [[int(tokens[level][code]) for level, code in enumerate(codes[item])] for item in history]
            ids = prompt.ids(items)
            written = [int(tokens[level][code]) for level, code in enumerate(codes[target])]
            logits = model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0].float()
            scores = [logits[len(ids) - 1 + level, used[level]].log_softmax(dim=0) for level in range(len(tokens))]
            found.append(Expected(history, target, scores))
    return found


@torch.inference_mode()
def largest_difference(
    model: PromptedRecommender, codes: npt.NDArray[np.integer], expected: Sequence[Expected]
) -> float:
    """The largest difference of a log-probability: prompts run as one batch, targets as a tree behind the cache."""
    levels = model.config.levels
    histories = [one.history for one in expected]
    items, lengths = pad_histories(histories, items=len(codes), limit=model.config.max_history)
    prompt = model.encode_prompt(items, lengths)
    targets = torch.from_numpy(codes[[one.target for one in expected]].astype("int64"))  # (B, L)
    hidden, cache, worst = prompt.last, prompt.cache, 0.0
    seen = prompt.real
    for level in range(levels):
        logits = model.token_logits(level, hidden)
        for row, one in enumerate(expected):
            used = _used(codes, level)
            found = logits[row, used].float().log_softmax(dim=0)
            worst = max(worst, float((found - one.scores[level]).abs().max()))
        if level < levels - 1:
            seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
            tokens = model.embed_codes(level, targets[:, level : level + 1])
            positions = (prompt.following + level)[:, None]
            states, cache = model.extend(tokens, positions, seen[:, None, None], cache)
            hidden = states[:, 0]
    return worst


def _used(codes: npt.NDArray[np.integer], level: int) -> Tensor:
    return torch.from_numpy(np.unique(codes[:, level]).astype("int64"))
