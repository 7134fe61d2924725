"""The whole way as steps that are skipped when nothing they read has changed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from recsys.errors import DataError, WindfireError
from recsys.storage import read_json, sha256_file, sha256_parts, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SEED: Final = 1
_VOLATILE: Final = {"seconds", "cpu_seconds"}  # of manifests: how long it took is no reason to do it again


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch of the way.

    Attributes:
        name: shown, and the key under which the step is remembered.
        run: does it; again after a kill, it continues or starts over.
        settings: what it depends on besides its inputs.
        inputs: files it depends on; a folder stands for the manifests of its jobs.
        result: exists when the step was done.
    """

    name: str
    run: Callable[[], None]
    settings: tuple[str, ...]
    inputs: tuple[Path, ...]
    result: Path

    def fingerprint(self) -> str:
        """Of settings and inputs as they are now."""
        return sha256_parts([*self.settings, *(digest for path in self.inputs for digest in _digests(path))])


class Journal:
    """Which steps were done with which inputs; survives in one JSON file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, str] = read_json(path) if path.is_file() else {}

    def do(self, step: Step) -> float | None:
        """Run a step unless it was done with the same inputs.

        Returns:
            Seconds, or None where it was left out.
        """
        if step.result.exists() and self._done.get(step.name) == step.fingerprint():
            return None
        started = time.monotonic()
        step.run()
        if not step.result.exists():
            raise DataError(f"the step {step.name} left no result", field="result", value=str(step.result))
        self._done[step.name] = step.fingerprint()
        write_json_atomically(self._path, self._done)
        return time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Demo:
    """Where everything of one demonstration lies.

    Attributes:
        home: the directory that holds all of it.
        source: imported tables, or a log to import; None simulates a marketplace.
        mapping: a mapping file for the log.
        config: the trainer's settings.
    """

    home: Path
    source: Path | None
    mapping: Path | None
    config: Path

    @property
    def tables(self) -> Path:
        """The tables: the source itself where it is imported already."""
        return self.source if self.source is not None and self.source.is_dir() else self.home / "tables"

    @property
    def work(self) -> Path:
        """What the Spark jobs write."""
        return self.home / "work"

    @property
    def registry(self) -> Path:
        """Published bundles."""
        return self.home / "registry"

    @property
    def state(self) -> Path:
        """The server's event log, exposure log and histories."""
        return self.home / "state"

    def first_steps(self) -> list[Step]:
        """From nothing to prepared data and histories."""
        offline = ("offline", "run", "--data", str(self.tables), "--out", str(self.work), "--split", "latest")
        tables_manifest = self.tables / "manifest.json"
        offline_done = self.work / "item_to_item" / "manifest.json"
        return [
            *self._source_steps(),
            Step("offline", command(*offline), offline, (tables_manifest,), offline_done),
            Step("histories", self._load_histories, (), (tables_manifest,), self.state / "features"),
        ]

    def last_steps(self) -> list[Step]:
        """From prepared data to a published bundle; the run directory is named by what the model is trained on."""
        prepared = (self.work, self.config)
        run = self.home / "runs" / Step("run", _nothing, (), prepared, self.work).fingerprint()[:12]
        places = ("--data", str(self.work), "--out", str(run))
        train = ("train", "recommender", *places, "--config", str(self.config), "--seed", str(_SEED))
        publish = ("publish", "--run", str(run), "--data", str(self.work), "--registry", str(self.registry))
        trained = run / "manifest.json"
        return [
            Step("train", command(*train), train, prepared, trained),
            Step("publish", command(*publish), publish, (trained, self.work), self.registry / "CURRENT"),
        ]

    def _source_steps(self) -> list[Step]:
        manifest = self.home / "tables" / "manifest.json"
        if self.source is None:
            arguments = ("simulate", "--size", "demo", "--seed", str(_SEED), "--out", str(self.home / "tables"))
            return [Step("simulate", command(*arguments), arguments, (), manifest)]
        if self.source.is_dir():
            return []
        extra = () if self.mapping is None else ("--mapping", str(self.mapping))
        inputs = (self.source,) if self.mapping is None else (self.source, self.mapping)
        arguments = ("import", "generic", str(self.source), "--out", str(self.home / "tables"), *extra)
        return [Step("import", command(*arguments), arguments, inputs, manifest)]

    def _load_histories(self) -> None:
        """Make the histories anew from the tables; the server adds its event log's events when it starts."""
        import shutil

        from feature_store.embedded import EmbeddedFeatureStore
        from feature_store.standard import USER_RECENT
        from feature_store.streaming import load_events
        from recsys.event_log import ConsumerOffsets
        from recsys.records import POSITIVE_ACTIONS
        from serving.histories import consumer_name

        shutil.rmtree(self.state / "features", ignore_errors=True)
        ConsumerOffsets(self.state / "offsets").commit(consumer_name(), 0)
        store = EmbeddedFeatureStore(self.state / "features")
        load_events(store, USER_RECENT, self.tables, POSITIVE_ACTIONS)
        store.close()


def command(*arguments: str) -> Callable[[], None]:
    """A step that runs a command of windfire in a process of its own, so that its memory is free afterwards."""

    def run() -> None:
        done = subprocess.run(windfire(arguments), check=False)  # noqa: S603
        if done.returncode:
            raise WindfireError(
                f"`windfire {' '.join(arguments)}` ended with status {done.returncode}",
                remedy="see its message above; the same command again continues where this one stopped",
            )

    return run


def windfire(arguments: Sequence[str]) -> list[str]:
    """The command line of a windfire command in this interpreter."""
    return [sys.executable, "-m", "windfire", *arguments]


def _nothing() -> None:
    return


def _digests(path: Path) -> list[str]:
    if path.is_dir():
        return [digest for manifest in sorted(path.glob("*/manifest.json")) for digest in _digests(manifest)]
    if path.suffix != ".json":
        return [sha256_file(path)]
    value: dict[str, Any] = read_json(path)
    return [path.parent.name, json.dumps({name: value[name] for name in sorted(value) if name not in _VOLATILE})]
