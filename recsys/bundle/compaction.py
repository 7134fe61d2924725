"""Compaction of the catalogue log into a bundle, and what of the log nobody needs any more."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from recsys.bundle.manifest import BundleManifest
from recsys.bundle.promotion import take_over
from recsys.catalog.folding import CHANGES, Folded, fold, read_folded, write_folded
from recsys.errors import DataError, InputError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from recsys.bundle.registry import Registry
    from recsys.catalog.log import CatalogLog


def folded_of(directory: Path, manifest: BundleManifest) -> Folded:
    """What of the log is folded into a version; of one without, nothing behind its snapshot.

    Raises:
        CorruptionError: see `recsys.catalog.folding.read_folded`.
    """
    if CHANGES not in manifest.files:
        return Folded(manifest.catalog_sequence, manifest.catalog_sequence, [])
    return read_folded(directory / CHANGES)


def fold_log(registry: Registry, log: CatalogLog, start: int) -> Folded:
    """Fold all that a log ever held from a sequence number on; where it was trimmed, what a version holds of it.

    Args:
        registry: its versions hold what the log does not any more.
        log: of the registry's catalogue.
        start: the sequence number that a snapshot stands at.

    Raises:
        DataError: the log ends before `start`, or the records behind it are gone.
        CorruptionError: a record is damaged.
    """
    log.settle()
    end = log.end
    if log.start <= start:
        return Folded(start, end, fold(log.read(start, end)))
    for version in sorted(registry.versions(), reverse=True):
        directory = registry.path(version)
        held = folded_of(directory, BundleManifest.load(directory))
        if held.start <= start and held.end >= log.start:
            return continued(Folded(start, held.end, [each for each in held.records if each[0] >= start]), log, end)
    raise DataError(
        f"the catalogue log begins at {log.start}, and no version of the registry holds what stood before",
        field="catalog_sequence",
        value=start,
        remedy="say with --catalog-sequence up to where the work directory holds the log, or restore its segments",
    )


def continued(folded: Folded, log: CatalogLog, end: int) -> Folded:
    """A fold with the records behind it, up to an end.

    Raises:
        DataError, CorruptionError: see `recsys.catalog.log.CatalogLog.read`.
    """
    return Folded(folded.start, end, fold([*folded.records, *log.read(folded.end, end)]))


def compact(registry: Registry, log: CatalogLog, *, created: datetime, make_current: bool = True) -> BundleManifest:
    """Publish the version that is served once more, with the log folded in: the same model, and the catalogue of now.

    Files that stay are shared with the version before where the file system can.

    Args:
        registry: with a version that is served.
        log: of its catalogue.
        created: UTC; names the version.
        make_current: whether to serve the new version from now on.

    Returns:
        The manifest of the new version; of the served one where the log has nothing new.

    Raises:
        DataError: nothing was published yet, the log is not the one of the served version, or another version is served
            by the time that the new one would be: then it stays so.
        CorruptionError: a file of the served version, or a record of the log, is damaged.
    """
    served = registry.open_current()
    before = folded_of(served.path, served.manifest)
    log.settle()
    folded = continued(before, log, log.end)
    if folded.end == before.end:
        return served.manifest

    def write(directory: Path) -> BundleManifest:
        for name in served.manifest.files:
            if name != CHANGES:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                _share(served.path / name, directory / name)
        write_folded(directory / CHANGES, folded)
        return replace(served.manifest, catalog_sequence=folded.end, created=created.isoformat())

    version = f"{created:%Y%m%dT%H%M%S.%fZ}-{served.manifest.model_version}"
    manifest = registry.publish(version, write, make_current=False)
    if make_current:
        take_over(registry, manifest.version, served.manifest.version)
    return manifest


def trim(registry: Registry, log: CatalogLog) -> tuple[int, int]:
    """Remove the segments of a log that no version of the registry needs.

    Returns:
        The sequence number before which nothing is needed, and how many segments went.

    Raises:
        InputError: the registry is empty: then everything may be needed.
        CorruptionError: a manifest is damaged: then nobody knows.
        UnavailableError: see `recsys.catalog.log.CatalogLog.writing`.
    """
    with registry.exclusive():  # nobody publishes meanwhile what needs more
        manifests = [BundleManifest.load(registry.path(version)) for version in registry.versions()]
        if not manifests:
            raise InputError(
                "the registry is empty",
                field="registry",
                value=str(registry.root),
                remedy="run `windfire publish` first",
            )
        needed = min(manifest.catalog_sequence for manifest in manifests)
        with log.writing() as writer:
            return needed, writer.truncate_before(needed)


def _share(source: Path, target: Path) -> None:
    """A second name of a file that never changes; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
