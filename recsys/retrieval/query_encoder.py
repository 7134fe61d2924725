"""The text encoder that belongs to an index: what makes a query's vector comparable with the items'."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.errors import ConfigError, InputError, VersionMismatchError
from recsys.storage import read_json
from recsys.text.encoder import (
    HASHING,
    PACKAGED_MODEL,
    encoder_dimension,
    load_encoder,
    model_directory,
    model_fingerprint,
)

if TYPE_CHECKING:
    from recsys.retrieval.checks import Vectors
    from recsys.text.encoder import TextEncoder

COPIED: Final = "encoder"  # folder of a model that is no part of the installation
_PICKLES: Final = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Which encoder made the vectors.

    Attributes:
        model: all-MiniLM-L6-v2 (packaged), `hashing`, or a directory; in a folder of indexes the latter is `encoder`,
            a copy beside them.
        max_tokens: longer texts are cut.
        bfloat16: the model runs in bfloat16.
        dimension: D of the vectors.
        fingerprint: of the model's files; None for hashing.
    """

    model: str
    max_tokens: int
    bfloat16: bool
    dimension: int
    fingerprint: str | None = None

    @classmethod
    def of(cls, model: str, *, max_tokens: int, bfloat16: bool) -> EncoderSpec:
        """Describe an encoder.

        Raises:
            ConfigError: neither a packaged model nor a directory.
        """
        directory = model_directory(model)
        fingerprint = None if directory is None else model_fingerprint(directory)
        return cls(model, max_tokens, bfloat16, encoder_dimension(model), fingerprint)

    def placed(self, folder: Path) -> EncoderSpec:
        """Copy a model of one's own into a folder of indexes; packaged ones are named only.

        Raises:
            ConfigError: it holds pickled weights.
        """
        if self.model in (HASHING, PACKAGED_MODEL):
            return self
        pickled = [path for path in Path(self.model).rglob("*") if path.suffix in _PICKLES]
        if pickled:
            raise ConfigError(
                "a bundle holds no pickle",
                field="encoder",
                value=str(pickled[0]),
                remedy="save the model with safetensors",
            )
        shutil.copytree(self.model, folder / COPIED)
        return EncoderSpec(COPIED, self.max_tokens, self.bfloat16, self.dimension, self.fingerprint)

    def load(self, folder: Path) -> QueryEncoder:
        """Load the encoder.

        Args:
            folder: of the indexes.

        Raises:
            ConfigError: the model is not there.
            VersionMismatchError: its files are not those that made the vectors.
        """
        model = str(folder / COPIED) if self.model == COPIED else self.model
        directory = model_directory(model)
        if directory is not None and model_fingerprint(directory) != self.fingerprint:
            raise VersionMismatchError(
                "the text encoder has other files than the one that made the items' vectors",
                field="encoder",
                value=self.model,
                remedy="encode the items again with `windfire offline run`, and build the index",
            )
        return QueryEncoder(load_encoder(model, max_tokens=self.max_tokens, bfloat16=self.bfloat16, rows=1))


class QueryEncoder:
    """One text in, one vector out; safe to share between threads.

    Args:
        encoder: made the items' vectors.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._lock = Lock()  # the tokenizer of a language model may not be asked twice at once
        self.dimension = encoder.dimension

    def encode(self, text: str) -> Vectors:
        """(D,) the vector of a text.

        Raises:
            InputError: the text is blank, or the encoder finds nothing in it.
        """
        # JSON can carry lone surrogates, which no tokenizer takes
        words = text.encode("utf-8", "replace").decode().strip()
        with self._lock:
            vector = self._encoder.encode([words])[0] if words else np.zeros(self.dimension, dtype=np.float32)
        if not vector.any():
            raise InputError(
                "there is nothing in this text to search for",
                field="text",
                value=text,
                remedy="give at least one word",
            )
        return vector


def encoder_of_job(work: Path, chosen: str) -> EncoderSpec | None:
    """The encoder of a work directory's text embeddings.

    Args:
        work: of `windfire offline run`.
        chosen: `auto` (hashing, or the packaged model where it made the vectors), `none`, or a model's directory.

    Returns:
        None where it is not wanted, or where `auto` does not find it.

    Raises:
        VersionMismatchError: another model made the vectors.
        ConfigError: no model in the directory.
    """
    path = work / "text_embeddings" / "manifest.json"
    if chosen == "none" or (chosen == "auto" and not path.is_file()):
        return None
    if not path.is_file():
        raise VersionMismatchError(
            "it is not known which model made the items' text vectors",
            field="encoder",
            value=chosen,
            remedy="give --encode, too: then the texts are encoded with it",
        )
    settings: dict[str, Any] = read_json(path)["settings"]
    name = (HASHING if settings.get("hashing") else PACKAGED_MODEL) if chosen == "auto" else chosen
    directory = model_directory(name)
    made = None if directory is None else model_fingerprint(directory)
    if made != settings.get("model"):
        if chosen == "auto":
            return None
        raise VersionMismatchError(
            "another model made the items' text vectors",
            field="encoder",
            value=chosen,
            remedy="give the directory that `windfire offline run` had in text.model",
        )
    return EncoderSpec.of(name, max_tokens=int(settings["max_tokens"]), bfloat16=bool(settings["bfloat16"]))
