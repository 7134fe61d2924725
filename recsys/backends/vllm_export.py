"""From a recommender of the token shape to a directory that vLLM loads with Windfire's plug-in.

vLLM's own embedding takes one token id per position. What our item input sums per item (codes, ID, text,
collaboration) is therefore summed once here: one row per code of levels 1..L-1, and one per item for its last token, or
one per (last code, known or not) where the model reads nothing of an item but its codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file

from recsys.backends.huggingface import HuggingFaceBackbone
from recsys.backends.vllm_format import ARCHITECTURE, IO_PROCESSOR, MANIFEST, ExportManifest, Vocabulary
from recsys.backends.vllm_identity import export_id
from recsys.errors import ConfigError
from recsys.models.token import TokenRecommender
from recsys.storage import staged_directory, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from recsys.backends.vllm_identity import Origin
    from recsys.models import ItemFeatures, Recommender

_AT_ONCE: Final = 2**16  # items


def export_vllm(model: Recommender, features: ItemFeatures, origin: Origin, out: Path) -> ExportManifest:
    """Write config.json, model.safetensors, windfire.json and the catalogue's arrays.

    Args:
        model: of the token shape with a Hugging Face Qwen3 backbone, in evaluation mode.
        features: codes and training counts of the catalogue.
        origin: of the model.
        out: replaced if it holds an export, else it must not exist.

    Raises:
        ConfigError: a model that the plug-in cannot serve, or `out` holds something else.
    """
    token, backbone = _checked(model)
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(
            "holds something else than an export", field="out", value=str(out), remedy="name a new folder"
        )
    items, last_row = _last_tokens(token, features)
    vocabulary = Vocabulary(token.config.codebook_sizes, len(items), token.config.placeholders)
    weights = {f"model.{name}": value for name, value in backbone.decoder.state_dict().items()}
    weights["model.embed_tokens.weight"] = embedding_table(token, items)
    weights |= {f"head.{name}": value.float() for name, value in token.head.state_dict().items()}
    manifest = ExportManifest(
        export_id=export_id(origin, features.codes, features.train_counts),
        model_version=origin.model_version,
        tokenizer_version=origin.tokenizer_version,
        bundle_version=origin.bundle_version,
        items=len(features.codes),
        last_rows=len(items),
        model=token.config.to_dict(),
    )
    own = {"architectures": [ARCHITECTURE], "io_processor_plugin": IO_PROCESSOR}
    with staged_directory(out) as directory:
        save_file(_contiguous(weights), directory / "model.safetensors")
        write_json_atomically(directory / "config.json", decoder_config(token, vocabulary.size) | own)
        write_json_atomically(directory / MANIFEST, manifest.to_dict())
        np.save(directory / "codes.npy", np.ascontiguousarray(features.codes, np.int32))
        np.save(directory / "last_row.npy", last_row.astype(np.int32))
        np.save(directory / "train_counts.npy", np.ascontiguousarray(features.train_counts, np.int64))
    return manifest


def decoder_config(model: TokenRecommender, vocabulary: int) -> dict[str, Any]:
    """config.json of the backbone with an embedding of that many tokens."""
    _, backbone = _checked(model)
    config: Any = backbone.decoder.config
    longest = 1 + (model.config.max_history + 1) * model.config.levels
    value: dict[str, Any] = config.to_dict()
    return value | {
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "max_position_embeddings": max(longest, value.get("max_position_embeddings", 0)),
        "dtype": str(model.start.dtype).removeprefix("torch."),
    }


@torch.inference_mode()
def embedding_table(model: TokenRecommender, items: npt.NDArray[np.integer]) -> torch.Tensor:
    """(V, H) input rows in the order of `Vocabulary`.

    Args:
        model: in evaluation mode.
        items: (R,) an item for each last token.
    """
    every = torch.from_numpy(items.astype(np.int64)).to(model.start.device)
    last = [
        model.embed_codes(model.config.levels - 1, model.input.codes[part, -1]) + model.input.embed_rest(part)
        for part in torch.split(every, _AT_ONCE)
    ]
    codes = [table.get_parameter("weight") for table in list(model.input.code_embedding)[:-1]]
    placeholders = [model.placeholder] if model.config.placeholders else []
    return torch.cat([model.start[None], *codes, *last, *placeholders])


def _last_tokens(
    model: TokenRecommender, features: ItemFeatures
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """(R,) an item for each last token, and (I,) the last token of each item."""
    config = model.config
    count = len(features.codes)
    if config.use_item_id or config.text_dim or config.collaborative_dim:
        return np.arange(count), np.arange(count)
    known = features.train_counts > 0
    _, first, row = np.unique(
        features.codes[:, -1] + config.codebook_sizes[-1] * known, return_index=True, return_inverse=True
    )
    return first, row.reshape(count)


def _checked(model: Recommender) -> tuple[TokenRecommender, HuggingFaceBackbone]:
    """The model and its backbone, if the plug-in can serve them."""
    if not isinstance(model, TokenRecommender):
        raise ConfigError(
            "vLLM serves the token shape: its placeholders are tokens of the prompt",
            field="shape",
            value=model.config.shape,
            remedy="train with shape: token",
        )
    backbone = model.backbone
    if not isinstance(backbone, HuggingFaceBackbone):
        raise ConfigError(
            "vLLM knows Hugging Face's architectures, not our own backbone",
            field="backbone",
            value=model.config.backbone,
            remedy="train with backbone: huggingface",
        )
    config: Any = backbone.decoder.config
    if config.model_type != "qwen3":
        raise ConfigError(
            "the plug-in serves Qwen3 decoders",
            field="backbone_config.model_type",
            value=config.model_type,
            remedy="train with model_type: qwen3",
        )
    return model, backbone


def _contiguous(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
