"""ONNX Runtime answers as the compressor does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from recsys.backends.compressor_onnx import INPUT, OUTPUT, compressor_graph, export_compressor
from recsys.errors import ConfigError
from recsys.models.smec import Compressor, CompressorConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model() -> Compressor:
    generator = torch.Generator().manual_seed(4)
    found = Compressor(CompressorConfig(48, 3), torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return found.eval()


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_every_exported_width_agrees_with_the_stack(model: Compressor, tmp_path: Path, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 48)).astype(np.float32)
    paths = export_compressor(model, tmp_path)
    assert [path.name for path in paths] == ["compressor_24.onnx", "compressor_12.onnx", "compressor_6.onnx"]
    for path, width in zip(paths, model.widths, strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answer = session.run([OUTPUT], {INPUT: x})[0]
        assert answer.shape == (rows, width)
        np.testing.assert_allclose(answer, model(torch.from_numpy(x), width).detach(), atol=3e-6)


def test_a_vector_without_a_direction_stays_finite() -> None:
    proto = compressor_graph(Compressor(CompressorConfig(8, 1)), 4)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert (session.run([OUTPUT], {INPUT: np.zeros((2, 8), np.float32)})[0] == 0).all()


def test_the_graph_has_standard_operators_only(model: Compressor) -> None:
    proto = compressor_graph(model, 12)
    assert [opset.domain for opset in proto.opset_import] == [""]
    onnx.checker.check_model(proto, full_check=True)


def test_another_width_is_refused(model: Compressor) -> None:
    with pytest.raises(ConfigError, match="no such width"):
        compressor_graph(model, 10)
