"""What users of the `transformers` library do today: `generate` with beams and a prefix trie.

The weights are those of our token shape on a Hugging Face backbone, copied into the library's own causal model: its
embedding holds our code embeddings and its output layer our output layers, level by level. A history enters as
embeddings, as it does everywhere else. `renormalize_logits` takes the softmax over the allowed tokens, so that
`generate` scores as our `beam`.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from recsys.backends.huggingface import HuggingFaceBackbone
from recsys.decoding.decoder import DecodeResult, Ranked, Spent, check_request
from recsys.decoding.histories import pad_histories
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from recsys.decoding.eligibility import Eligibility
    from recsys.decoding.log_prior import LogPrior
    from recsys.models import TokenRecommender

_DEAD: Final = -1e8  # the library marks beams that lead nowhere with -1e9


class HfGenerateDecoder:
    """`Decoder` over `generate`; it knows one set of items, that of the trie, and no other eligibility.

    Args:
        model: of the token shape over a Hugging Face backbone, in evaluation mode.
        codes: (I, L) semantic IDs.
        prior: (I,) order of preference among items that share a semantic ID.

    Raises:
        ConfigError: the model has another backbone.
    """

    name = "hf_generate"

    def __init__(
        self, model: TokenRecommender, codes: npt.NDArray[np.integer], *, prior: npt.NDArray[np.number]
    ) -> None:
        self._model, self._config = model, model.config
        self._language_model = causal_model(model)
        sizes = model.config.codebook_sizes
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # (L,) first token of each level
        tokens = np.asarray(codes) + self._offsets  # (I, L)
        self._children: dict[tuple[int, ...], list[int]] = {}
        self._items: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for item in np.lexsort((np.arange(len(codes)), -prior)).tolist():
            self._items[tuple(tokens[item].tolist())].append(item)
        below: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for path in self._items:
            for depth, token in enumerate(path):
                below[path[:depth]].add(token)
        self._children = {prefix: sorted(found) for prefix, found in below.items()}

    @torch.inference_mode()
    def decode(
        self,
        histories: Sequence[npt.NDArray[np.integer]],
        *,
        k: int,
        beam: int,
        eligibility: Eligibility,
        log_prior: LogPrior | None = None,
    ) -> DecodeResult:
        """See `Decoder.decode`; ties fall as `torch.topk` lets them.

        Raises:
            InputError: a beam of 1, with which `generate` returns no scores, or an eligibility or a log-prior, which it
                has no place for.
        """
        check_request(k, beam)
        if beam < 2:
            raise InputError(
                "generate searches with 2 beams or more", field="beam", value=beam, remedy="pass beam >= 2"
            )
        if eligibility.shared is not None or eligibility.excluded is not None or log_prior is not None:
            raise InputError(
                "generate answers from the whole catalogue only", field="eligibility", value="given", remedy="none"
            )
        embedded, mask = self._prompts(histories)
        answer: Any = self._language_model.generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            num_beams=beam,
            num_return_sequences=min(k, beam),
            max_new_tokens=self._config.levels,
            prefix_allowed_tokens_fn=lambda _, prefix: self._children.get(tuple(prefix.tolist()), [0]),
            renormalize_logits=True,
            length_penalty=0.0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
        )
        returned = answer.sequences.view(len(histories), -1, self._config.levels).tolist()
        scores = answer.sequences_scores.view(len(histories), -1).numpy()
        ranked = [self._ranked(paths, row, k) for paths, row in zip(returned, scores, strict=True)]
        levels = self._config.levels
        read = sum(min(len(history), self._config.max_history) * levels + 1 for history in histories)
        return DecodeResult(ranked, Spent(levels, beam * (read + (levels - 1) * len(histories))))

    def _prompts(self, histories: Sequence[npt.NDArray[np.integer]]) -> tuple[Tensor, Tensor]:
        """(B, 1 + n * L, H) and (B, 1 + n * L): padding stands on the left, as `generate` wants it."""
        model, levels = self._model, self._config.levels
        items, lengths = pad_histories(histories, items=self._config.num_items, limit=self._config.max_history)
        tokens = model.embed_items(items.clamp(min=0))  # (B, n * L, H)
        x = torch.cat([model.start.expand(len(items), 1, -1), tokens], dim=1)
        real = 1 + lengths * levels  # (B,)
        width = x.shape[1]
        place = torch.arange(width) - (width - real)[:, None]  # (B, width)
        rows = torch.arange(len(items))[:, None]
        return x[rows, place.clamp(min=0)], (place >= 0).long()

    def _ranked(self, paths: list[list[int]], scores: npt.NDArray[np.floating], k: int) -> Ranked:
        items: list[int] = []
        values: list[float] = []
        for path, score in zip(paths, scores.tolist(), strict=True):
            if score > _DEAD:
                found = self._items[tuple(path)]
                items += found
                values += [score] * len(found)
        return Ranked(np.asarray(items[:k], dtype=np.int32), np.asarray(values[:k], dtype=scores.dtype))


def causal_model(model: TokenRecommender) -> Any:
    """The library's causal language model with the recommender's weights; its vocabulary is the levels' codes.

    Raises:
        ConfigError: the backbone is not a Hugging Face decoder.
    """
    backbone = model.backbone
    if not isinstance(backbone, HuggingFaceBackbone):
        raise ConfigError(
            "`generate` needs a Hugging Face decoder",
            field="backbone",
            value=model.config.backbone,
            remedy="train with `backbone: huggingface`",
        )
    decoder: Any = backbone.decoder
    config = deepcopy(decoder.config)
    config.vocab_size = sum(model.config.codebook_sizes)
    config.tie_word_embeddings = False
    language_model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="sdpa", dtype=model.start.dtype
    )
    language_model.base_model.load_state_dict(decoder.state_dict(), strict=False)
    levels = range(model.config.levels)
    with torch.no_grad():
        inputs = torch.cat([model.input.code_embedding[level].get_parameter("weight") for level in levels])
        outputs = torch.cat([model.outputs[level].get_parameter("weight") for level in levels])
        language_model.get_input_embeddings().weight.copy_(inputs)
        language_model.get_output_embeddings().weight.copy_(outputs)
    return language_model.eval()
