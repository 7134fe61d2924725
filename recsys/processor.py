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


def int8_sums_overflow() -> bool:
    """Whether sums of two products of an unsigned and a signed 8-bit integer are cut off at 16 bits.

    So they are on x86 without VNNI (`vpmaddubsw`), unless the signed one is at most 64 in size.
    """
    import torch

    found = torch.cpu.get_capabilities()
    whole = ("avx512_vnni", "avx_vnni", "amx_int8")
    return found.get("architecture") == "x86_64" and not any(found.get(name, False) for name in whole)
