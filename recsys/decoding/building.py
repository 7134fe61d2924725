"""Which decoders a model offers, and building one by its word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsys.decoding.beam import BeamDecoder
from recsys.decoding.flat import FlatDecoder
from recsys.decoding.fused import FusedDecoder
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.speculative import SpeculativeDecoder
from recsys.errors import ConfigError
from recsys.models.compact import FlatRecommender
from recsys.models.prompted import PromptedRecommender
from recsys.models.token import TokenRecommender

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recsys.decoding.decoder import Decoder
    from recsys.decoding.fused import Fusion
    from recsys.decoding.trie import SidTrie
    from recsys.models import AnyRecommender


def decoder_names(model: AnyRecommender) -> tuple[str, ...]:
    """The decoders that answer from this model's weights, the default first."""
    if isinstance(model, FlatRecommender):
        return ("flat",)
    if isinstance(model, PromptedRecommender) and not model.drafted:
        return ("beam",)
    if isinstance(model, TokenRecommender | PromptedRecommender):
        return ("nezha", "beam", "speculative")
    return ("nezha",)


def build_decoder(
    model: AnyRecommender,
    trie: SidTrie,
    *,
    name: str | None = None,
    prior: npt.NDArray[np.number] | None = None,
    fusion: Fusion | None = None,
) -> Decoder:
    """A decoder over a model in evaluation mode.

    Args:
        model: trained with this trie.
        trie: of the tokenizer's assignment.
        name: one of `decoder_names(model)`, or `fused` over the `nezha` of a model that has it; None = the first.
        prior: (I,) order of preference among items that share a semantic ID.
        fusion: what `fused` ranks by; the other decoders leave it alone.

    Raises:
        ConfigError: the model's shape has no such decoder, or `fused` without a fusion that fits.
    """
    offered = decoder_names(model)
    chosen = name or offered[0]
    if chosen == FusedDecoder.name and NezhaDecoder.name in offered:
        if fusion is None:
            raise ConfigError(
                "no item-to-item table was fitted to this model",
                field="decoder",
                value=chosen,
                remedy=f"run `windfire train fusion` on its run and publish it again, or one of {', '.join(offered)}",
            )
        return FusedDecoder(build_decoder(model, trie, name=NezhaDecoder.name, prior=prior), fusion, trie, prior=prior)
    if chosen not in offered:
        raise ConfigError(
            f"{_described(model)} has no such decoder",
            field="decoder",
            value=chosen,
            remedy=f"one of {', '.join(offered)}",
        )
    if isinstance(model, FlatRecommender):
        return FlatDecoder(model)
    if isinstance(model, TokenRecommender | PromptedRecommender) and chosen == "beam":
        return BeamDecoder(model, trie, prior=prior)
    if isinstance(model, TokenRecommender | PromptedRecommender) and chosen == "speculative":
        return SpeculativeDecoder(model, trie, prior=prior)
    return NezhaDecoder(model, trie, prior=prior)


def _described(model: AnyRecommender) -> str:
    if isinstance(model, PromptedRecommender) and not model.drafted:
        return "an imported model without a draft head (`windfire train draft-head` fits one)"
    return f"a {model.config.shape} model"
