"""What a bundle says of itself, and the checksums that prove it."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from recsys.catalog.arrays import REPUBLISH
from recsys.errors import CorruptionError, DataError
from recsys.storage import read_json, sha256_file, sha256_parts, write_bytes_atomically, write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

BUNDLE_FORMAT: Final = "windfire.bundle/1"
MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: SHA-256 in hexadecimal and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the model was trained on.

    Attributes:
        events: training interactions.
        first_time: earliest one, UTC microseconds (a position in the source where it has no times).
        last_time: latest one.
        offset: events of the source that the offline jobs had read; where a source only grows, the next increment
            begins here. None where they did not say.
    """

    events: int
    first_time: int | None
    last_time: int | None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """The manifest of one bundle version.

    Attributes:
        version: the bundle's own name in its registry.
        model_version: names weights and configuration; derived from their bytes.
        tokenizer_version: names the codebooks and the assignment that the model was trained with.
        catalog_sequence: the catalog log's sequence number at which the snapshot stands.
        items: number of items in the snapshot.
        created: ISO 8601, UTC.
        training: range and offset of the training data.
        code_version: git commit of the code, else the package's version.
        metrics: measured before publishing, name to value.
        measured_on: names the held-out events that they were measured on, see `recsys.bundle.gate.basis_of`; None where
            nothing was held out, or in bundles of earlier releases.
        config: the settings of the training run.
        parent: the version that was current when this one was published.
        files: path inside the bundle to checksum and size.
    """

    version: str
    model_version: str
    tokenizer_version: str
    catalog_sequence: int
    items: int
    created: str
    training: TrainingData
    code_version: str
    metrics: dict[str, float] = field(default_factory=dict)
    measured_on: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: str = BUNDLE_FORMAT

    @property
    def catalog_version(self) -> str:
        """`<bundle>.<sequence>`."""
        return f"{self.version}.{self.catalog_sequence}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and checksums of all files: equal fingerprints, equal content."""
        return sha256_parts(f"{name} {entry.sha256}" for name, entry in sorted(self.files.items()))

    def save(self, directory: Path) -> None:
        """Write the manifest and its own checksum, in the form that `sha256sum --check` reads."""
        write_json_atomically(directory / MANIFEST, asdict(self))
        write_bytes_atomically(directory / SEAL, _seal(directory / MANIFEST))

    @classmethod
    def load(cls, directory: Path) -> BundleManifest:
        """Read a manifest and check it against its checksum.

        Raises:
            DataError: no bundle there, or one of another format.
            CorruptionError: manifest or checksum were changed; names the file.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise DataError("no bundle here", field="path", value=str(directory), remedy="run `windfire publish` first")
        try:
            sealed = (directory / SEAL).read_bytes() == _seal(path)
        except OSError as error:
            raise corrupt(directory / SEAL, f"{SEAL} cannot be read: {error}") from error
        if not sealed:
            raise corrupt(path, f"{MANIFEST} differs from its checksum in {SEAL}")
        value: dict[str, Any] = read_json(path)
        if value.get("format") != BUNDLE_FORMAT:
            raise DataError(
                f"the bundle has another format than {BUNDLE_FORMAT}",
                field="format",
                value=value.get("format"),
                remedy="publish it again with this version of windfire",
            )
        files = {name: FileEntry(**entry) for name, entry in value.pop("files").items()}
        return cls(files=files, training=TrainingData(**value.pop("training")), **value)


def corrupt(path: Path, message: str) -> CorruptionError:
    """The error for a damaged file of a bundle."""
    return CorruptionError(message, field="file", value=str(path), remedy=REPUBLISH)


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Checksum every file below a directory, manifest and seal left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in (MANIFEST, SEAL):
            found[name] = FileEntry(sha256_file(path), path.stat().st_size)
    return found


def verify_files(directory: Path, files: dict[str, FileEntry]) -> None:
    """Read every file and compare it with its checksum.

    Raises:
        CorruptionError: names the first file that is missing, cut or changed.
    """
    check_sizes(directory, files)
    for name, entry in files.items():
        if sha256_file(directory / name) != entry.sha256:
            raise corrupt(directory / name, f"{name} differs from its checksum")


def check_sizes(directory: Path, files: dict[str, FileEntry]) -> None:
    """Compare every file's size, without reading it.

    Raises:
        CorruptionError: names the first file that is missing or has another size.
    """
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise corrupt(path, f"{name} is missing")
        if path.stat().st_size != entry.bytes:
            raise corrupt(path, f"{name} has {path.stat().st_size} bytes instead of {entry.bytes}")


def verify_once(directory: Path, files: dict[str, FileEntry], markers: Path) -> None:
    """Like `verify_files`, but hash only what no process of this host has verified since it was last changed.

    Args:
        directory: of the bundle.
        files: name to checksum and size.
        markers: a host-local directory for what was verified; keyed by path, time of change, inode and checksum.

    Raises:
        CorruptionError: names the first file that is missing, cut or changed.
    """
    check_sizes(directory, files)
    state = [str(directory.resolve())]
    for name, entry in sorted(files.items()):
        stat = (directory / name).stat()
        state.append(f"{name} {entry.sha256} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    marker = markers / hashlib.sha256(json.dumps(state).encode()).hexdigest()
    if marker.exists():
        return
    verify_files(directory, files)
    with suppress(OSError):  # a full disk: it is verified again
        write_bytes_atomically(marker, b"verified\n")


def _seal(manifest: Path) -> bytes:
    return f"{sha256_file(manifest)}  {MANIFEST}\n".encode()
