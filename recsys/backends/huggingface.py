"""Any Hugging Face decoder as the backbone of a recommender.

The library gives the architecture only: weights are drawn at random, trained here and kept in our own files, so
nothing is downloaded. The recommender embeds its tokens itself; the decoder's table of words is dropped.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, DynamicCache, DynamicLayer

from recsys.errors import ConfigError
from recsys.models.backbone import KVCache, ffn_width, take_tail

if TYPE_CHECKING:
    from recsys.models import RecommenderConfig
    from recsys.models.backbone import Around, MakeEngine

_DEFAULT_TYPE: Final = "qwen3"
_ATTENTION: Final = ("sdpa", "eager")  # the implementations that take a mask of any form
_OURS: Final = ("hidden_size", "vocab_size", "dtype")


class LibraryDecoder(nn.Module):
    """A decoder of the `transformers` library behind the interface of `recsys.models.backbone.Backbone`.

    Args:
        decoder: takes embedded tokens, positions and masks, and attends to the whole history in every layer.
        additive: whether its attention adds the mask to the scores.
    """

    def __init__(self, decoder: nn.Module, *, additive: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self._additive = additive

    def freeze(self, make_engine: MakeEngine | None = None, around: Around | None = None) -> None:
        """Nothing to do: a decoder of the library has one way to run; `choose_engine` offers it no other."""

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """See `recsys.models.backbone.Backbone.tail`."""
        return self.prefill(x, ends=ends, count=count)[0]

    def prefill(self, x: Tensor, *, ends: Tensor, count: int) -> tuple[Tensor, KVCache]:
        """See `recsys.models.backbone.Backbone.prefill`."""
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
            cache: keys and values of m earlier tokens; stays as it is.

        Returns:
            hidden states (B, n, H) after the final norm, and the cache of all m + n tokens.
        """
        # Always with a cache: without one the library looks for packed sequences in the positions.
        past = DynamicCache() if cache is None else DynamicCache(zip(cache.keys, cache.values, strict=True))
        output = self.decoder(
            inputs_embeds=x,
            position_ids=positions,
            attention_mask=self._library_mask(mask, x.dtype),
            past_key_values=past,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        layers: list[Any] = past.layers
        return hidden, KVCache(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers))

    def _library_mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None or not self._additive:
            return mask
        # eager attention adds its mask to the scores: True would be taken for 1.
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


class HuggingFaceBackbone(LibraryDecoder):
    """An untrained decoder in the sizes of a recommender.

    Any type with `inputs_embeds`, positions per token and full attention in every layer will do; what it does with
    positions, masks and caches is tried once on construction.

    Args:
        config: `backbone_config` holds the `model_type` (default `qwen3`), the `attn_implementation` (`sdpa` or
            `eager`) and further keys of that type's configuration, over the values that follow from the sizes.

    Raises:
        ConfigError: an unknown type or key, sizes that do not fit each other, or a type that is no such decoder.
    """

    def __init__(self, config: RecommenderConfig) -> None:
        model_type = _model_type(config)
        attention = _attention(config)
        values = _values(model_type, config)
        try:
            chosen = AutoConfig.for_model(model_type, **values)
            full = all(type(layer) is DynamicLayer for layer in DynamicCache(config=chosen).layers)
            decoder: Any = AutoModel.from_config(  # type: ignore[no-untyped-call]
                chosen, attn_implementation=attention, dtype=torch.get_default_dtype()
            )
            decoder.set_input_embeddings(nn.Identity())
            super().__init__(decoder, additive=attention == "eager")
            fit = full and _reads_as_asked(self, config.d_model)
        except Exception as error:  # a foreign model may fail in any way
            raise ConfigError(
                f"transformers cannot build a {model_type} decoder of these sizes: {error}",
                field="backbone_config",
                value=config.backbone_config,
                remedy="change the sizes of the model or the keys of backbone_config",
            ) from error
        if not fit:
            raise ConfigError(
                f"{model_type} with these settings is no causal decoder with full attention in every layer",
                field="backbone_config",
                value=config.backbone_config,
                remedy="`sliding_window: null` where the type has one, or another model_type, such as qwen3 or llama",
            )


def _model_type(config: RecommenderConfig) -> str:
    model_type: Any = config.backbone_config.get("model_type", _DEFAULT_TYPE)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(
            "transformers knows no such model type",
            field="backbone_config.model_type",
            value=model_type,
            remedy="a decoder's, such as qwen3, llama, mistral, gpt_neox",
        )
    return model_type


def _attention(config: RecommenderConfig) -> str:
    attention: Any = config.backbone_config.get("attn_implementation", _ATTENTION[0])
    if attention not in _ATTENTION:
        raise ConfigError(
            "attention that cannot follow a mask of any form",
            field="backbone_config.attn_implementation",
            value=attention,
            remedy=f"one of {', '.join(_ATTENTION)}",
        )
    return str(attention)


def _values(model_type: str, config: RecommenderConfig) -> dict[str, Any]:
    """Keys of the library's configuration: what follows from our sizes, as far as the type has it, and the chosen."""
    kind: Any = CONFIG_MAPPING[model_type]
    known = {one.name for one in fields(kind)} | set(kind.attribute_map)
    if not {"hidden_size", "num_hidden_layers"} <= known:
        raise ConfigError(
            "a model of several parts, not a decoder",
            field="backbone_config.model_type",
            value=model_type,
            remedy="the type of its text decoder, often with the ending `_text`",
        )
    chosen = {
        name: value
        for name, value in config.backbone_config.items()
        if name not in ("model_type", "attn_implementation")
    }
    for name, value in chosen.items():
        if name in _OURS or name not in known:
            raise ConfigError(
                "follows from the recommender" if name in _OURS else f"{model_type} has no such setting",
                field=f"backbone_config.{name}",
                value=value,
                remedy="leave it out" if name in _OURS else f"see {kind.__name__} in the manual of transformers",
            )
    derived = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.d_model // config.heads,
        "intermediate_size": ffn_width(config.d_model, config.ffn_multiple),
        "max_position_embeddings": 1 + (config.max_history + 1) * config.levels,  # the token shape's, the longest
        "attention_dropout": config.dropout,
        "vocab_size": 1,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return {name: value for name, value in derived.items() if name in known} | chosen


@torch.no_grad()
def _reads_as_asked(backbone: HuggingFaceBackbone, width: int) -> bool:
    """Whether a fresh decoder is causal and follows positions, masks and caches.

    Two siblings behind a prompt of two tokens, once as two sequences and once as a tree with a mask, the tree with
    and without a cache, must have the same states. torch's current generator stays untouched.
    """
    backbone.eval()
    x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 2]])
    tree = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)[None, None]
    one, _ = backbone(x[:, :3], positions=positions[:, :3])
    other, _ = backbone(x[:, [0, 1, 3]], positions=positions[:, :3])
    expected = torch.cat([one, other[:, 2:]], dim=1)
    _, prompt = backbone(x[:, :2], positions=positions[:, :2])
    behind, _ = backbone(x[:, 2:], positions=positions[:, 2:], mask=tree[:, :, 2:], cache=prompt)
    whole, _ = backbone(x, positions=positions, mask=tree)
    backbone.train()
    tolerance = 100 * torch.finfo(x.dtype).eps
    found = (whole, torch.cat([other[:, :2], behind], dim=1))
    return all(torch.allclose(states, expected, rtol=0, atol=tolerance) for states in found)
