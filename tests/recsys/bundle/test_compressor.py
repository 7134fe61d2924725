"""A stored compressor answers as before; a damaged one is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.bundle.compressor import load_compressor, save_compressor
from recsys.errors import ConfigError, CorruptionError, DataError
from recsys.models.smec import Compressor, CompressorConfig
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Compressor]:
    model = Compressor(CompressorConfig(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    save_compressor(tmp_path, model)
    return tmp_path, model


def test_what_is_read_is_what_was_written(stored: tuple[Path, Compressor]) -> None:
    directory, model = stored
    found = load_compressor(directory)
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    assert not found.training
    for width in model.widths:
        np.testing.assert_array_equal(found.reduce(x, width), model.reduce(x, width))


def test_damage_is_refused(stored: tuple[Path, Compressor], tmp_path: Path) -> None:
    directory, _ = stored
    weights = load_file(directory / "weights.safetensors")
    save_file({**weights, "stages.0.bias": weights["stages.0.bias"] * torch.nan}, directory / "weights.safetensors")
    with pytest.raises(DataError, match=r"not finite.*stages.0.bias"):
        load_compressor(directory)
    save_file({"other": torch.zeros(1)}, directory / "weights.safetensors")
    with pytest.raises(DataError, match="do not fit"):
        load_compressor(directory)
    (directory / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptionError, match=r"weights\.safetensors"):
        load_compressor(directory)
    write_json_atomically(directory / "config.json", {"dimension": 8, "halvings": 9})
    with pytest.raises(ConfigError, match="halved 9 times"):
        load_compressor(directory)
    with pytest.raises(DataError, match="no compressor here"):
        load_compressor(tmp_path / "nowhere")
