from __future__ import annotations

import re
from pathlib import Path

import pytest

from recsys.processor import has_bfloat16


def test_the_processor_is_asked_for_its_instructions() -> None:
    known = set(re.findall(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()))
    assert has_bfloat16() == bool(known)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_device_that_is_not_there_has_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_bfloat16(device)
