"""NEZHA in vLLM: the entry points of the plug-in. Nothing heavy is imported before vLLM asks for it."""

from __future__ import annotations

from recsys.backends.vllm_format import ARCHITECTURE

__all__ = ["io_processor", "register"]


def register() -> None:
    """Tell vLLM of the architecture; called in each of its processes, possibly more than once."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "windfire_vllm.model:WindfireNezhaQwen3")


def io_processor() -> str:
    """Where vLLM finds the class that reads requests and writes answers."""
    return "windfire_vllm.processor.NezhaProcessor"
