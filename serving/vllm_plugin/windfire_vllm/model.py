"""The architecture: vLLM's own Qwen3 decoder, our draft head, our pooler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from recsys.models.head import DraftHead
from windfire_vllm.export import Export
from windfire_vllm.pooler import DraftPooler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.config import VllmConfig
    from vllm.sequence import IntermediateTensors


class WindfireNezhaQwen3(nn.Module):
    """A pooling model: one forward of the prompt, then the head's beam over the last L + 1 states.

    The head stays in float32 whatever the backbone's precision.

    Args:
        vllm_config: of the server; `model` is a directory of `windfire export-vllm`.
        prefix: of the weights' names.

    Raises:
        ConfigError: a setting of the server under which some histories could not be read.
        DataError: the directory is no export.
    """

    is_pooling_model: ClassVar[Literal[True]] = True
    hf_to_vllm_mapper = Qwen3Model.hf_to_vllm_mapper
    packed_modules_mapping = Qwen3ForCausalLM.packed_modules_mapping

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        export = Export.load(vllm_config.model_config.model)
        export.check_server(longest=vllm_config.model_config.max_model_len)
        self.config = vllm_config.model_config.hf_config
        self.model = Qwen3Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.head = DraftHead(export.config).float()
        self.pooler = DraftPooler(export)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(n,) token ids -> (n, H)."""
        embedded: torch.Tensor = self.model.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(n,) tokens of all requests of the step -> (n, H) states behind the last norm."""
        hidden: torch.Tensor = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load model.safetensors, then lay head and catalogue out for search."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        self.pooler.load(self.head)
        return loaded
