"""A compressor's ONNX graph, run by ONNX Runtime: what a bundle's index compresses queries with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from recsys.backends.compressor_onnx import INPUT, OUTPUT
from recsys.errors import CorruptionError, DataError
from recsys.models.smec import check_vectors

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_ROWS_AT_ONCE: Final = 2**14
_WARNINGS: Final = 2
_SHAPE: Final = 2  # axes of a matrix


class GraphCompressor:
    """Vectors of width N to unit vectors of a fixed smaller width, on one thread.

    Args:
        path: `compressor_WIDTH.onnx` of a run of `windfire train smec`, or a copy.

    Raises:
        DataError: no such file, or a graph with other inputs and outputs than a compressor has.
        CorruptionError: ONNX Runtime cannot read it; names the file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(
                "no compressor of this width",
                field="compressor",
                value=str(path),
                remedy="give a run of `windfire train smec`, and one of its widths",
            )
        self.graph = path.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _WARNINGS
        try:
            self._session = onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class of their own
            raise CorruptionError(
                f"{path.name} cannot be read by ONNX Runtime: {str(error).splitlines()[0]}",
                field="file",
                value=str(path),
                remedy="train the compressor again, or take the file from another copy",
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.dimension, self.width = _columns(path, inputs, INPUT), _columns(path, outputs, OUTPUT)

    def __call__(self, vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Compress: (B, width) of unit length from (B, N); a zero vector stays one.

        Raises:
            InputError: vectors of another width, or a component that is not finite; names the row.
        """
        check_vectors(vectors, self.dimension)
        short = np.empty((len(vectors), self.width), dtype=np.float32)
        for begin in range(0, len(vectors), _ROWS_AT_ONCE):
            part = np.ascontiguousarray(vectors[begin : begin + _ROWS_AT_ONCE], dtype=np.float32)
            short[begin : begin + len(part)] = self._session.run([OUTPUT], {INPUT: part})[0]
        return short


def _columns(path: Path, ends: Any, name: str) -> int:
    """Of the one matrix that goes in or comes out."""
    if len(ends) != 1 or ends[0].name != name or len(ends[0].shape) != _SHAPE or not isinstance(ends[0].shape[1], int):
        raise DataError(
            f"not the graph of a compressor: it wants one matrix called {name}",
            field="compressor",
            value=str(path),
            remedy="give a run of `windfire train smec`",
        )
    return int(ends[0].shape[1])
