"""ONNX Runtime answers as the compressor does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from recsys.backends.compressor_onnx import INPUT, OUTPUT, compressor_graph, export_compressor
from recsys.backends.compressor_runtime import GraphCompressor
from recsys.errors import ConfigError, CorruptionError, DataError, InputError
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


def test_a_vector_without_a_direction_stays_one(model: Compressor) -> None:
    proto = compressor_graph(model, 24)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert (session.run([OUTPUT], {INPUT: np.zeros((2, 48), np.float32)})[0] == 0).all()


def test_the_runtime_of_a_bundle_answers_as_the_compressor_does(model: Compressor, tmp_path: Path) -> None:
    path = export_compressor(model, tmp_path)[1]
    found = GraphCompressor(path)
    assert (found.dimension, found.width) == (48, 12)
    for count in (0, 1, 2**14 + 3):
        x = np.random.default_rng(count).normal(size=(count, 48))
        np.testing.assert_allclose(found(x), model.reduce(x.astype(np.float32), 12), atol=3e-6)
    with pytest.raises(InputError, match=r"\(B, 48\)"):
        found(np.ones((1, 12)))
    with pytest.raises(InputError, match="row 1 of 2"):
        found(np.array([[1.0] * 48, [np.inf] * 48]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no compressor of this width"):
        GraphCompressor(tmp_path / "compressor_48.onnx")
    (tmp_path / "half.onnx").write_bytes(b"half")
    with pytest.raises(CorruptionError, match=r"half\.onnx"):
        GraphCompressor(tmp_path / "half.onnx")
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in ("x", "y")]
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", shape[:1], shape[1:])
    (tmp_path / "other.onnx").write_bytes(
        helper.make_model(other, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    with pytest.raises(DataError, match="one matrix called vectors"):
        GraphCompressor(tmp_path / "other.onnx")


def test_the_graph_has_standard_operators_only(model: Compressor) -> None:
    proto = compressor_graph(model, 12)
    assert [opset.domain for opset in proto.opset_import] == [""]
    onnx.checker.check_model(proto, full_check=True)


def test_another_width_is_refused(model: Compressor) -> None:
    with pytest.raises(ConfigError, match="no such width"):
        compressor_graph(model, 10)
