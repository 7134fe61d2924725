"""A model whose weights stay where they are: a bundle names the folder and the checksum of every file in it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from recsys.bundle.manifest import FileEntry, check_sizes, corrupt, verify_files, verify_once
from recsys.catalog.arrays import load_json
from recsys.errors import CorruptionError, DataError
from recsys.storage import sha256_file, write_json_atomically

EXTERNAL: Final = "external.json"
EXTERNAL_FORMAT: Final = "windfire.external/1"

# what a model and its tokenizer are read from; nothing else in the folder matters to an answer
_READ: Final = re.compile(
    r"(config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
    r"|(tokenizer|spiece)\.model|.*\.safetensors(\.index\.json)?"
)


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """Where a language model is, and how it is asked.

    Attributes:
        family: whose form it has.
        path: its folder, absolute.
        licence: what the folder says, `unknown` where it does not.
        precision: in which it is loaded.
        prompt: `recsys.backends.prompted.PromptTokens` by field.
        code_tokens: per level (T_l,) the token id of each code, -1 where no item has the code.
        files: name to checksum and size of what is read from the folder.
    """

    family: str
    path: str
    licence: str
    precision: str
    prompt: dict[str, list[int]]
    code_tokens: list[list[int]]
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: str = EXTERNAL_FORMAT

    @property
    def directory(self) -> Path:
        """The model's folder."""
        return Path(self.path)

    def save(self, directory: Path) -> None:
        """Write external.json."""
        write_json_atomically(directory / EXTERNAL, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> ExternalModel:
        """Read external.json.

        Raises:
            CorruptionError: it cannot be read.
            DataError: another format.
        """
        value: dict[str, Any] = load_json(directory / EXTERNAL)
        if value.get("format") != EXTERNAL_FORMAT:
            raise DataError(
                f"the imported model has another format than {EXTERNAL_FORMAT}",
                field="format",
                value=value.get("format"),
                remedy="import the model again with this version of windfire",
            )
        return cls(**{**value, "files": {name: FileEntry(**entry) for name, entry in value["files"].items()}})

    def verify(self, *, hashes: bool = True, markers: Path | None = None) -> None:
        """Compare the folder's files with their checksums.

        Args:
            hashes: False compares sizes only.
            markers: see `recsys.bundle.manifest.verify_once`.

        Raises:
            CorruptionError: names the first file that is missing, cut, changed or came in addition.
        """
        try:
            _check_added(self.directory, self.files)
            if not hashes:
                check_sizes(self.directory, self.files)
            elif markers is None:
                verify_files(self.directory, self.files)
            else:
                verify_once(self.directory, self.files, markers)
        except CorruptionError as error:
            raise CorruptionError(
                f"the imported model is not as it was: {error.message}",
                field="file",
                value=error.value,
                remedy="put the folder back as it was, or import the model again",
            ) from error


def describe_model(directory: Path) -> dict[str, FileEntry]:
    """Checksum what a model and its tokenizer are read from."""
    return {path.name: FileEntry(sha256_file(path), path.stat().st_size) for path in _read_from(directory)}


def _read_from(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.iterdir()) if path.is_file() and _READ.fullmatch(path.name)]


def _check_added(directory: Path, files: dict[str, FileEntry]) -> None:
    """Raise `CorruptionError` where a file would be read that was not there at the import."""
    if not directory.is_dir():
        return  # then its files are missing, too
    for path in _read_from(directory):
        if path.name not in files:
            raise corrupt(path, f"{path.name} was added")
