"""From a bundle to a model and a decoder that answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from recsys.backends import choose_backbone, choose_engine
from recsys.bundle.bundle import RETRIEVAL
from recsys.bundle.external import ExternalModel
from recsys.bundle.fusion import FUSION, FUSION_MANIFEST, load_fusion
from recsys.bundle.manifest import corrupt
from recsys.catalog.arrays import load_json
from recsys.decoding.building import build_decoder
from recsys.decoding.fused import FusedDecoder
from recsys.decoding.second import SecondModel
from recsys.errors import ConfigError, DataError, VersionMismatchError
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.models.compact import FlatRecommender

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from recsys.bundle.bundle import Bundle
    from recsys.decoding.decoder import Decoder
    from recsys.models import AnyRecommender, PromptedRecommender
    from recsys.retrieval.folder import Retrieval


def load_decoder(bundle: Bundle, name: str | None = None, *, engine: str = "auto") -> Decoder:
    """Build the decoder that answers from a bundle's weights.

    Args:
        bundle: opened.
        name: a decoder of the model's shape, or `fused`; None takes the shape's own (`nezha`, or `flat`).
        engine: see `recsys.backends.choose_engine`.

    Raises:
        ConfigError: the shape has no decoder of this name, the bundle nothing to fuse, or the backbone or the engine
            cannot be built here.
        CorruptionError: the weights cannot be read; names the file.
        DataError: the weights do not fit the configuration or are not finite.
        VersionMismatchError: the model was made for another catalog or other codebooks.
    """
    features = ItemFeatures(bundle.codes, bundle.text, bundle.collaborative, bundle.train_counts)
    model = load_model(bundle.model_config_path.parent, features, bundle.codebook_sizes)
    model.freeze(choose_engine(engine, model.config))
    held = f"{FUSION}/{FUSION_MANIFEST}" in bundle.manifest.files

    def second(folder: Path) -> SecondModel:
        return load_second(folder, features, bundle.codebook_sizes, engine=engine)

    fusion = load_fusion(bundle.path / FUSION, second) if held and name == FusedDecoder.name else None
    return build_decoder(model, bundle.trie, prior=bundle.train_counts, name=name, fusion=fusion)


def load_second(
    folder: Path, features: ItemFeatures, codebook_sizes: tuple[int, ...], *, engine: str = "auto"
) -> SecondModel:
    """Read a second model of the decoder `fused`.

    Args:
        folder: holds config.json and weights.safetensors.
        features: of the catalog that it was trained on, the bundle's.
        codebook_sizes: of the tokenizer.
        engine: see `recsys.backends.choose_engine`.

    Raises:
        ConfigError: it gives no vector to an item, or the engine cannot be built here.
        CorruptionError, DataError, VersionMismatchError: see `load_model`.
    """
    model = load_model(folder, features, codebook_sizes)
    if not isinstance(model, FlatRecommender):
        raise ConfigError(
            "a second model must give vectors to histories and items",
            field="second.model.shape",
            value=model.config.shape,
            remedy="train one with `model: {shape: flat}`",
        )
    model.freeze(choose_engine(engine, model.config))
    return SecondModel(model)


def load_indexes(bundle: Bundle, *, encoder: bool = True) -> Retrieval | None:
    """Open the indexes of a bundle; None where it has none.

    Args:
        bundle: opened, and verified unless its reader knows better.
        encoder: load the text encoder, too, where one belongs to them.

    Raises:
        ConfigError: faiss cannot be imported, or the encoder's model is not there.
        CorruptionError, DataError, VersionMismatchError: see `recsys.retrieval.folder.load_retrieval`.
    """
    if not bundle.has_indexes:
        return None
    try:
        from recsys.retrieval.folder import load_retrieval
    except ImportError as error:
        raise ConfigError(
            f"faiss cannot be imported: {error}",
            field="retrieval",
            value=bundle.manifest.version,
            remedy="install windfire's extra `cpu` or `gpu`",
        ) from error
    return load_retrieval(bundle.path / RETRIEVAL, verify=False, encoder=encoder)


def load_model(directory: Path, features: ItemFeatures, codebook_sizes: tuple[int, ...]) -> AnyRecommender:
    """Read config.json and weights.safetensors of a trained model, in evaluation mode.

    Args:
        directory: holds the two files.
        features: of the catalog the model was trained on.
        codebook_sizes: of the tokenizer.

    Raises:
        ConfigError: the backbone cannot be built here, for instance because transformers is not installed.
        CorruptionError: a file cannot be read; names it.
        DataError: the weights do not fit the configuration or are not finite.
        VersionMismatchError: the model was made for another catalog or other codebooks.
    """
    config = RecommenderConfig.from_dict(load_json(directory / "config.json"))
    items, levels = features.codes.shape
    if config.num_items != items or config.codebook_sizes != codebook_sizes or config.levels != levels:
        raise VersionMismatchError(
            f"the tokenizer names {items} items in codebooks {codebook_sizes}; the model was made for "
            f"{config.num_items} items in codebooks {config.codebook_sizes}",
            field="codebook_sizes",
            value=config.codebook_sizes,
            remedy="train the model again on this work directory",
        )
    weights = _read_weights(directory / "weights.safetensors")
    if config.backbone == "imported":
        return _load_imported(directory, config, features, weights)
    model = build_model(config, _used(features, config), choose_backbone)
    _fill(model, weights, directory)
    return model.eval()


def _load_imported(
    directory: Path, config: RecommenderConfig, features: ItemFeatures, weights: dict[str, Tensor]
) -> PromptedRecommender:
    """A language model from its own folder, with the head that was fitted to it, if one was."""
    external = ExternalModel.load(directory)
    external.verify(hashes=False)
    try:
        from recsys.backends.prompted import PromptTokens, load_prompted
    except ImportError as error:
        raise ConfigError(
            f"transformers cannot be imported: {error}",
            field="backbone",
            value=config.backbone,
            remedy="install transformers: an imported model runs in it",
        ) from error
    model = load_prompted(
        external.directory,
        config,
        codes=features.codes,
        prompt=PromptTokens(**{name: tuple(tokens) for name, tokens in external.prompt.items()}),
        code_tokens=external.code_tokens,
        precision=external.precision,
    )
    if weights:
        _fill(model.drafting, weights, directory)
        model.drafted = True
    return model.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise corrupt(path, f"{path.name} cannot be read: {error}") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DataError("a weight is not finite", field="tensor", value=name, remedy="train the model again")
    return weights


def _fill(module: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise DataError(
            f"the weights do not fit the model's configuration: {error}",
            field="weights",
            value=str(directory / "weights.safetensors"),
            remedy="publish the run directory as training wrote it",
        ) from error


def _used(features: ItemFeatures, config: RecommenderConfig) -> ItemFeatures:
    """The features that the model reads: a part that was switched off in training has width 0."""
    return ItemFeatures(
        codes=features.codes,
        text=_width(features.text, config.text_dim, "text_dim"),
        collaborative=_width(features.collaborative, config.collaborative_dim, "collaborative_dim"),
        train_counts=features.train_counts,
    )


def _width(vectors: npt.NDArray[np.float32], wanted: int, field: str) -> npt.NDArray[np.float32]:
    if wanted not in (0, vectors.shape[1]):
        raise VersionMismatchError(
            f"the items have vectors of width {vectors.shape[1]}",
            field=field,
            value=wanted,
            remedy="train the model again on this work directory",
        )
    return vectors[:, :wanted]
