"""What the processor is good at."""

from __future__ import annotations


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether bfloat16 matrix products are faster than float32.

    Without instructions of its own for them a processor takes several times as long, as it converts every operand.

    Args:
        device: its type, as in `torch.device`.
    """
    import torch

    if device != "cpu":
        return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
