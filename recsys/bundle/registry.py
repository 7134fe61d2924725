"""The registry: published versions and the one pointer that says which of them is served."""

from __future__ import annotations

import fcntl
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from recsys.bundle.manifest import MANIFEST, BundleManifest, describe_files, verify_files
from recsys.errors import DataError, InputError, WindfireError
from recsys.storage import staged_directory, write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from recsys.bundle.bundle import Bundle

_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
_LONGEST: Final = 128


def check_version(version: str) -> str:
    """Return a version's name if it can be a directory's name inside the registry and nothing else.

    Raises:
        InputError: path separators, '..', a leading dot, or more than 128 characters.
    """
    if not _VERSION.fullmatch(version) or len(version) > _LONGEST:
        raise InputError(
            "a version is made of letters, digits, '-', '_' and single dots inside",
            field="version",
            value=version,
            remedy="name one that `windfire publish --list` shows",
        )
    return version


class _SameContentError(Exception):
    """Ends a publish whose files are all in the registry already."""

    def __init__(self, manifest: BundleManifest) -> None:
        super().__init__(manifest.version)
        self.manifest = manifest


class Registry:
    """Bundle versions below one directory: `versions/<version>/` and `CURRENT`.

    Readers need no lock: a version appears by a rename and CURRENT changes by one, so that whenever a publish
    dies, the version served before is served on. Writers take turns by a lock file that dies with its process.

    Args:
        root: the registry's directory; made by the first publish.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, version: str) -> Path:
        """The directory of a version.

        Raises:
            InputError: not a version's name.
        """
        return self.root / "versions" / check_version(version)

    def versions(self) -> list[str]:
        """The published versions, oldest first."""
        folder = self.root / "versions"
        found = [path.name for path in folder.iterdir() if (path / MANIFEST).is_file()] if folder.is_dir() else []
        return sorted(name for name in found if _VERSION.fullmatch(name))

    def current(self) -> str | None:
        """The version to serve, None before the first publish.

        Raises:
            InputError: CURRENT holds no version's name.
        """
        try:
            return check_version((self.root / "CURRENT").read_text(encoding="utf-8").rstrip("\n"))
        except FileNotFoundError:
            return None

    def stamp(self) -> str:
        """Changes whenever CURRENT is set, also to what it names already; empty before the first publish."""
        try:
            stat = (self.root / "CURRENT").stat()
        except FileNotFoundError:
            return ""
        return f"{stat.st_ino}.{stat.st_mtime_ns}"

    def open(self, version: str, *, verify: bool = True, markers: Path | None = None) -> Bundle:
        """Open a version; arguments and errors of `Bundle.open`."""
        from recsys.bundle.bundle import Bundle  # with Numba, which whoever only moves pointers spares

        return Bundle.open(self.path(version), verify=verify, markers=markers)

    def open_current(self, *, verify: bool = True, markers: Path | None = None) -> Bundle:
        """Open the version to serve; arguments and errors of `Bundle.open`.

        Raises:
            DataError: nothing was published yet.
        """
        version = self.current()
        if version is None:
            raise DataError(
                "the registry is empty", field="registry", value=str(self.root), remedy="run `windfire publish` first"
            )
        return self.open(version, verify=verify, markers=markers)

    def publish(
        self, version: str, write: Callable[[Path], BundleManifest], *, make_current: bool = True
    ) -> BundleManifest:
        """Put a new version into the registry, unless one with the same content is there already.

        Args:
            version: its name; sorts after the names of earlier versions.
            write: fills an empty directory and returns the manifest; parent and files are filled in here.
            make_current: whether CURRENT moves to the new version.

        Returns:
            The manifest of the new version, or of the published one that holds the same files.

        Raises:
            InputError: a bad name, or one that exists: a published version is never changed.
        """
        target = self.path(version)
        with self.exclusive():
            if target.exists():
                raise InputError(
                    "this version is published already",
                    field="version",
                    value=version,
                    remedy="publish another version",
                )
            try:
                with staged_directory(target) as staged:
                    written = write(staged)
                    manifest = replace(written, version=version, parent=self.current(), files=describe_files(staged))
                    self._refuse_twin(manifest)
                    manifest.save(staged)
            except _SameContentError as twin:
                manifest = twin.manifest
            if make_current:
                self.point_to(manifest.version)
        return manifest

    def set_current(self, version: str) -> None:
        """Serve a version from now on.

        Raises:
            InputError: it is not in the registry.
        """
        with self.exclusive():
            self.point_to(version)

    def rollback(self, version: str | None = None) -> str:
        """Serve an earlier version.

        Args:
            version: which; None takes the one published last before the current one.

        Returns:
            The version that is served now.

        Raises:
            InputError: the version is not in the registry, or there is none before the current one.
        """
        with self.exclusive():
            version = self.earlier() if version is None else version
            self.point_to(version)
        return version

    def earlier(self) -> str:
        """The version published last before the current one.

        Raises:
            InputError: there is none.
        """
        found = [name for name in self.versions() if name < (self.current() or "")]
        if not found:
            raise InputError("no version before the current one", field="current", value=self.current())
        return found[-1]

    def _refuse_twin(self, manifest: BundleManifest) -> None:
        for version in reversed(self.versions()):
            # A damaged version is no twin: publishing again is how it is replaced.
            with suppress(WindfireError):
                published = BundleManifest.load(self.path(version))
                if published.fingerprint == manifest.fingerprint:
                    verify_files(self.path(version), published.files)
                    raise _SameContentError(published)

    def point_to(self, version: str) -> None:
        """Move CURRENT; for whoever holds the writers' lock (`exclusive`).

        Raises:
            InputError: not a version's name, or not in the registry.
        """
        self.require(version)
        write_bytes_atomically(self.root / "CURRENT", f"{version}\n".encode())

    def require(self, version: str) -> None:
        """Refuse a version that is not in the registry.

        Raises:
            InputError: not a version's name, or not in the registry.
        """
        if not (self.path(version) / MANIFEST).is_file():
            raise InputError(
                "this version is not in the registry",
                field="version",
                value=version,
                remedy=f"one of {self.versions()}",
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the writers' lock; what a killed writer left half done is removed first."""
        folder = self.root / "versions"
        folder.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in folder.glob(".staged-*"):
                shutil.rmtree(path)
            for path in self.root.glob(".*.tmp"):
                path.unlink()
            yield
