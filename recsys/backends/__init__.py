"""Backbones and engines that need more than torch, and choosing among all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from recsys.errors import ConfigError

if TYPE_CHECKING:
    from recsys.models import RecommenderConfig
    from recsys.models.backbone import AnyBackbone, Around, Backbone, Engine, MakeEngine

__all__ = ["EngineName", "choose_backbone", "choose_engine"]

EngineName = Literal["auto", "torch", "torch_bf16", "onnx", "onnx_int8"]


def choose_backbone(config: RecommenderConfig) -> AnyBackbone:
    """The untrained backbone that a configuration names, for `recsys.models.build_model`.

    Raises:
        ConfigError: its library cannot be imported, or it refuses its settings.
    """
    if config.backbone == "own":
        from recsys.models.compact import own_backbone  # torch, which a reader of `EngineName` alone spares

        return own_backbone(config)
    if config.backbone == "imported":
        raise ConfigError(
            "an imported model is loaded whole and not built",
            field="backbone",
            value=config.backbone,
            remedy="`windfire import-model` brings one in; to train one here choose `own` or `huggingface`",
        )
    try:
        from recsys.backends.huggingface import HuggingFaceBackbone
    except ImportError as error:
        raise ConfigError(
            f"transformers cannot be imported: {error}",
            field="backbone",
            value=config.backbone,
            remedy="install transformers, or choose the backbone `own`",
        ) from error
    return HuggingFaceBackbone(config)


def choose_engine(name: str, config: RecommenderConfig) -> MakeEngine | None:
    """What computes the forwards of a frozen model on a CPU.

    Args:
        name: `torch`; `torch_bf16` (matrix products in bfloat16, answers differ a little); `onnx` (ONNX Runtime in
            float32); `onnx_int8` (8-bit weights, answers differ a little); `auto`, which is `onnx` for the backbone
            `own` where onnxruntime is installed, else `torch`.
        config: of the model.

    Returns:
        For `freeze` of the model; None stands for torch.

    Raises:
        ConfigError: an unknown name, one that cannot run this backbone, or the library cannot be imported.
    """
    if name not in get_args(EngineName):
        raise ConfigError(
            "no such engine", field="engine", value=name, remedy=f"one of {', '.join(get_args(EngineName))}"
        )
    if name == "torch" or (name == "auto" and config.backbone != "own"):
        return None
    if config.backbone != "own":
        raise ConfigError(
            "this engine runs the backbone `own` only", field="engine", value=name, remedy="choose the engine `torch`"
        )
    if name == "torch_bf16":
        from recsys.backends.half import HalfEngine

        return HalfEngine
    try:
        from recsys.backends.onnx import OnnxEngine
    except ImportError as error:
        if name == "auto":
            return None
        raise ConfigError(
            f"onnxruntime cannot be imported: {error}",
            field="engine",
            value=name,
            remedy="install windfire's extra `cpu`, or choose the engine `torch`",
        ) from error
    # start, L tokens per item of the token shape, and its placeholders
    positions = 1 + (config.max_history + 1) * config.levels

    def make(backbone: Backbone, around: Around | None) -> Engine:
        return OnnxEngine(backbone, positions=positions, around=around, int8=name == "onnx_int8")

    return make
