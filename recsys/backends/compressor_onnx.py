"""A compressor as an ONNX graph of standard operators, for any runtime.

The graph of one width is its folded map and the scaling to unit length: `vectors` (B, N) float32 of any length become
`compressed` (B, width) float32, B free. It needs nothing of ours, so that an index or a store in another language can
run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from recsys.models.smec import Compressor

_OPSET: Final = 18
_IR_VERSION: Final = 10
_LEAST: Final = 1e-12  # torch's normalize divides by no less

INPUT: Final = "vectors"
OUTPUT: Final = "compressed"


def compressor_graph(model: Compressor, width: int) -> onnx.ModelProto:
    """The graph of one width, checked.

    Args:
        model: the compressor.
        width: one of its widths, or N.

    Raises:
        ConfigError: no such width.
    """
    matrix, bias = (part.cpu().numpy() for part in model.fold(width))  # (width, N), (width,)
    constants = {
        "matrix": matrix,
        "bias": bias,
        "least": np.array(_LEAST, np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gemm", [INPUT, "matrix"], ["turned"], transB=1),
        helper.make_node("ReduceL2", [INPUT, "axes"], ["size"], keepdims=1),
        helper.make_node("Mul", ["size", "bias"], ["shift"]),
        helper.make_node("Add", ["turned", "shift"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "axes"], ["length"], keepdims=1),
        helper.make_node("Max", ["length", "least"], ["divisor"]),
        helper.make_node("Div", ["projected", "divisor"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        f"compressor_{width}",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["B", model.config.dimension])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", width])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def export_compressor(model: Compressor, directory: Path) -> list[Path]:
    """Write `compressor_WIDTH.onnx` of every width into an existing directory, which the caller stages."""
    paths = []
    for width in model.widths:
        path = directory / f"compressor_{width}.onnx"
        path.write_bytes(compressor_graph(model, width).SerializeToString())
        paths.append(path)
    return paths
