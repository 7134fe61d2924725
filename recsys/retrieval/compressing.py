"""Shorter vectors in an index: the compressor that lies beside it, as the ONNX graph that made the items' vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from recsys.errors import ConfigError, CorruptionError, VersionMismatchError
from recsys.storage import sha256_file, write_bytes_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from recsys.retrieval.checks import Vectors


class Shortener(Protocol):
    """Vectors as an encoder makes them to vectors as an index holds them."""

    dimension: int
    """N of what goes in."""
    width: int
    """D of what comes out."""
    graph: bytes
    """Its ONNX file."""

    def __call__(self, vectors: npt.NDArray[np.floating]) -> Vectors:
        """(B, D) of unit length from (B, N); a zero vector stays one."""


@dataclass(frozen=True, slots=True)
class CompressorSpec:
    """Which compressor made an index's vectors.

    Attributes:
        file: its graph, in the folder of the indexes.
        sha256: of the graph.
        dimension: N of the vectors before.
        width: D of the vectors in the index.
    """

    file: str
    sha256: str
    dimension: int
    width: int

    def load(self, folder: Path) -> Shortener:
        """Open the graph.

        Args:
            folder: of the indexes.

        Raises:
            ConfigError: ONNX Runtime is not installed.
            CorruptionError: the file is missing or another one; names it.
            VersionMismatchError: a graph of other widths.
        """
        path = folder / self.file
        if not path.is_file() or sha256_file(path) != self.sha256:
            raise CorruptionError(
                f"{self.file} is missing or differs from its checksum",
                field="file",
                value=str(path),
                remedy="build the index again, or take it from another copy",
            )
        found = open_compressor(path)
        if (found.dimension, found.width) != (self.dimension, self.width):
            raise VersionMismatchError(
                f"{self.file} makes vectors of {found.width} dimensions from {found.dimension}",
                field="compressor",
                value=(self.dimension, self.width),
                remedy="build the index again",
            )
        return found


def open_compressor(path: Path) -> Shortener:
    """The compressor in an ONNX file.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CorruptionError, DataError: see `recsys.backends.compressor_runtime.GraphCompressor`.
    """
    try:
        from recsys.backends.compressor_runtime import GraphCompressor
    except ImportError as error:
        raise ConfigError(
            f"onnxruntime cannot be imported: {error}",
            field="compressor",
            value=str(path),
            remedy="install windfire's extra `cpu` or `gpu`",
        ) from error
    return GraphCompressor(path)


def place_compressor(compressor: Shortener, folder: Path, name: str) -> CompressorSpec:
    """Write a graph into a folder of indexes.

    Args:
        compressor: opened.
        folder: of the indexes.
        name: of the index.
    """
    file = compressor_file(name)
    write_bytes_atomically(folder / file, compressor.graph)
    return CompressorSpec(file, sha256_file(folder / file), compressor.dimension, compressor.width)


def compressor_file(name: str) -> str:
    """Where the compressor of an index lies in the folder of the indexes."""
    return f"compressor_{name}.onnx"
