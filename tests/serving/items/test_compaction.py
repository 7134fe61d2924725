"""A bundle with the log folded in and the rest of the log, against a bundle without and the whole log."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from recsys.bundle import Bundle, Registry, load_decoder, load_indexes, publish_run
from recsys.bundle.compaction import compact, trim
from recsys.bundle.pointers import CANARY, Share, read_share, write_share
from recsys.bundle.promotion import roll_back
from recsys.catalog.changes import Change, Delete, Expire, Stock, Upsert
from recsys.catalog.folding import CHANGES, read_folded
from recsys.catalog.log import CatalogLog
from recsys.errors import ConfigError, DataError, InputError, WindfireError
from recsys.storage import write_bytes_atomically
from serving.catalog_intake import CatalogIntake
from serving.engine import EngineRequest, Seek
from serving.item_changes import ItemChange
from serving.stages import BundleRecommender
from windfire.commands import catalogue, publish

ids = st.sampled_from([f"item-{n:02d}" for n in range(3)] + [f"new-{n}" for n in range(4)])
titles = st.sampled_from(["Crimson lacquer", "Wooden chair", "Title 1", "?!"])  # the last has no words
put = st.builds(Upsert, item_id=ids, time=st.just(0), title=titles, stock=st.none() | st.integers(0, 2))
gone = st.builds(Delete, item_id=ids, time=st.just(0))
others = st.builds(Expire, item_id=ids, time=st.just(0), until=st.integers(1, 5)) | st.builds(
    Stock, item_id=ids, time=st.just(0), stock=st.integers(0, 1)
)
# over HTTP, which encodes new items, or by an inventory, which does not
steps = st.lists(
    st.tuples(st.just("http"), put | gone) | st.tuples(st.just("inventory"), put | gone | others), max_size=14
)


@pytest.fixture
def registry(encodable_registry: Registry, tmp_path: Path) -> Registry:
    shutil.copytree(encodable_registry.root, tmp_path / "registry")
    return Registry(tmp_path / "registry")


@pytest.fixture
def log(registry: Registry) -> CatalogLog:
    return CatalogLog(registry.root / "catalog_log", segment_bytes=2_000)


def worker_of(bundle: Bundle, log: CatalogLog) -> BundleRecommender:
    worker = BundleRecommender(
        bundle, load_decoder(bundle), beam=20, retrieval=load_indexes(bundle), log=CatalogLog(log.directory)
    )
    worker.items.follow()
    return worker


def write(worker: BundleRecommender, log: CatalogLog, how: str, change: Change) -> None:
    if how == "http":
        assert isinstance(change, Upsert | Delete)
        CatalogIntake(CatalogLog(log.directory, segment_bytes=2_000), lambda: worker.items).write(
            [ItemChange(change=change)]
        )
    else:
        append(log, change)


def append(log: CatalogLog, *changes: Change) -> None:
    with log.writing() as writer:
        writer.append(changes)


def seen(worker: BundleRecommender) -> list[Any]:
    """Everything that a client can see of the catalogue, and the semantic IDs behind it."""
    now = [
        EngineRequest(history, 500, time, exclude_seen=False)
        for history in (["item-40"], ["new-1", "item-40"], [])
        for time in (1, 4)
    ]
    sought = [EngineRequest((), 500, 1, seek=seek) for seek in (Seek(text="crimson chair"), Seek(item_id="new-0"))]
    answers = worker.recommend([*now, *sought])
    encoder = worker.items.encoder
    assert encoder is not None
    given_ids = [encoder.placement.given(f"new-{n}") for n in range(4)]
    slates = [(answer.refusal, answer.ineligible, answer.items) for answer in answers]
    return [slates, given_ids, worker.items.sequence, worker.items.rows.added]


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=steps, between=steps, after=steps)
def test_a_compacted_bundle_and_the_rest_of_the_log_are_the_whole_log(
    encodable_registry: Registry, before: Any, between: Any, after: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(encodable_registry.root, Path(folder) / "registry")
        registry = Registry(Path(folder) / "registry")
        log = CatalogLog(registry.root / "catalog_log", segment_bytes=2_000)
        bundles = [registry.open_current()]
        writer = worker_of(bundles[0], log)
        for day, part in enumerate((before, between, after), 1):
            for how, change in part:
                write(writer, log, how, change)
            if day < 3:
                compact(registry, log, created=datetime(2026, 2, day, tzinfo=UTC))
                bundles.append(registry.open_current())
        whole, *compacted = (worker_of(bundle, log) for bundle in bundles)
        expected = seen(whole)
        assert expected[2] == log.end
        assert [seen(worker) for worker in compacted] == [expected] * 2
        assert seen(writer)[:2] == expected[:2]


def some_items(log: CatalogLog, bundle: Bundle, count: int = 30) -> BundleRecommender:
    worker = worker_of(bundle, log)
    for n in range(count):
        write(worker, log, "http", Upsert(item_id=f"new-{n}", time=0, title=f"Crimson lacquer {n}"))
    write(worker, log, "http", Delete(item_id="new-3", time=0))
    append(log, Stock(item_id="item-05", time=0, stock=0))
    return worker


def shown(worker: BundleRecommender) -> set[str]:
    (answer,) = worker.recommend([EngineRequest(["item-40"], 500, 1)])
    assert answer.ineligible == 0
    return {item.item_id for item in answer.items}


def test_the_new_version_is_the_same_model_and_names_its_place_in_the_log(registry: Registry, log: CatalogLog) -> None:
    old = registry.open_current()
    worker = some_items(log, old)
    expected, end = shown(worker), log.end
    manifest = compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC))
    new = registry.open_current()
    assert (new.manifest, manifest.catalog_sequence, manifest.parent) == (manifest, end, old.manifest.version)
    assert manifest.model_version == old.manifest.model_version
    assert {name: entry for name, entry in manifest.files.items() if name != CHANGES} == old.manifest.files
    folded = read_folded(new.path / CHANGES)
    assert (folded.start, folded.end) == (0, end)
    shutil.rmtree(log.directory)  # without any log
    alone = BundleRecommender(new, load_decoder(new), beam=20, retrieval=load_indexes(new))
    assert shown(alone) == expected
    assert alone.versions.catalog == f"{manifest.version}.{end}"
    assert "new-3" not in expected
    assert "item-05" not in expected
    assert len(expected) == 46 + 29


def test_nothing_new_is_no_new_version(registry: Registry, log: CatalogLog) -> None:
    some_items(log, registry.open_current(), 2)
    first = compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC))
    assert compact(registry, log, created=datetime(2026, 2, 2, tzinfo=UTC)) == first
    assert len(registry.versions()) == 2


def test_only_what_no_version_needs_is_trimmed(registry: Registry, log: CatalogLog) -> None:
    old = registry.open_current()
    worker = some_items(log, old)
    assert trim(registry, log) == (0, 0), "the first version replays everything"
    compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC))
    place = log.end
    append(log, Delete(item_id="new-4", time=0))
    assert trim(registry, log) == (0, 0)
    expected = shown(worker)
    assert shown(worker_of(old, log)) == expected, "a rollback"
    shutil.rmtree(old.path)
    needed, gone = trim(registry, log)
    assert needed == place
    assert gone > 3
    assert 0 < log.start <= place
    new = registry.open_current()
    assert shown(worker_of(new, log)) == expected
    with pytest.raises(DataError, match="no longer holds"):
        list(log.read(old.manifest.catalog_sequence, log.end))
    write(worker, log, "http", Upsert(item_id="new-99", time=0, title="Crimson"))
    compact(registry, log, created=datetime(2026, 2, 2, tzinfo=UTC))
    assert shown(worker_of(registry.open_current(), log)) == expected | {"new-99"}


class Overtaken(Registry):
    """Somebody serves another version just after the served one was opened."""

    def open_current(self, *, verify: bool = True, markers: Path | None = None) -> Bundle:
        bundle = super().open_current(verify=verify, markers=markers)
        with self.exclusive():
            self.point_to(self.versions()[0])
        return bundle


def test_who_served_another_version_meanwhile_is_not_undone(registry: Registry, log: CatalogLog) -> None:
    some_items(log, registry.open_current(), 2)
    compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC))
    append(log, Delete(item_id="new-0", time=0))
    first, second = registry.versions()
    assert registry.current() == second
    with pytest.raises(DataError, match="another version is served by now") as raised:
        compact(Overtaken(registry.root), log, created=datetime(2026, 2, 2, tzinfo=UTC))
    assert (raised.value.value, registry.current()) == (first, first)
    assert len(registry.versions()) == 3  # what was made stays, and is not served


def test_a_rollback_of_a_compacted_version_does_not_serve_what_the_gate_refused(
    registry: Registry, log: CatalogLog
) -> None:
    served = registry.open_current()
    refused = f"{served.manifest.version}-refused"  # newer than the served one, older than the compacted one
    shutil.copytree(served.path, registry.root / "versions" / refused)
    write_share(registry, CANARY, Share(refused, 0.1, "salt"))
    some_items(log, served, 2)
    new = compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC)).version
    assert registry.current() == new
    assert read_share(registry, CANARY) is not None  # the same model is served: it goes on
    assert roll_back(registry) == served.manifest.version


def test_nothing_is_trimmed_where_nobody_knows_what_is_needed(registry: Registry, log: CatalogLog) -> None:
    some_items(log, registry.open_current())
    write_bytes_atomically(registry.open_current().path / "manifest.json", b"{}")
    with pytest.raises(WindfireError):
        trim(registry, log)
    with pytest.raises(InputError, match="registry is empty"):
        trim(Registry(registry.root / "none"), log)
    assert log.start == 0


def test_a_publish_folds_the_log_in_also_where_it_was_trimmed(
    registry: Registry, log: CatalogLog, encodable_work: Path, encodable_run: Path, encodable_rerun: Path
) -> None:
    old = registry.open_current()
    worker = some_items(log, old)

    def again(run: Path, day: int, **rest: Any) -> Bundle:
        created = datetime(2026, 3, day, tzinfo=UTC)
        return registry.open(
            publish_run(registry, run=run, work=encodable_work, created=created, log=log, **rest).version
        )

    first = again(encodable_rerun, 1)
    expected, end = shown(worker), log.end
    assert (first.manifest.catalog_sequence, shown(worker_of(first, log))) == (end, expected)
    shutil.rmtree(old.path)
    assert trim(registry, log)[1] > 0
    write(worker_of(first, log), log, "http", Delete(item_id="new-5", time=0))
    second = again(encodable_run, 2)
    assert shown(worker_of(second, log)) == expected - {"new-5"}
    codes = [worker_of(bundle, log).items.encoder for bundle in (first, second)]
    assert all(encoder is not None for encoder in codes)
    assert len({tuple(e.placement.given(f"new-{n}") for n in range(30)) for e in codes if e is not None}) == 1
    later = again(encodable_run, 3, catalog_sequence=end)
    assert [number for number, _ in read_folded(later.path / CHANGES).records] == [end]
    shutil.rmtree(first.path)
    shutil.rmtree(second.path)
    with pytest.raises(DataError, match="no version of the registry holds"):
        again(encodable_rerun, 4)


def test_another_tokenizer_encodes_what_is_folded_as_it_does_the_log(
    registry: Registry, log: CatalogLog, second_bundle: Bundle, tmp_path: Path
) -> None:
    some_items(log, registry.open_current(), 12)
    append(log, *(Upsert(item_id=f"new-{n}", time=0, title=f"Wooden chair {n}") for n in range(9, 20)))
    whole = seen(worker_of(second_bundle, log))
    shutil.copytree(second_bundle.path.parents[1], tmp_path / "second")
    second = Registry(tmp_path / "second")
    compact(second, log, created=datetime(2026, 4, 1, tzinfo=UTC))
    append(log, Delete(item_id="new-12", time=0), Upsert(item_id="new-50", time=0, title="Wooden"))
    assert seen(worker_of(second.open_current(), log)) == seen(worker_of(second_bundle, log)) != whole


_KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
import recsys.bundle.compaction as compaction
from recsys.bundle import Registry
from recsys.catalog.log import CatalogLog
def die(path, folded):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
compaction.write_folded = die
root = Path(sys.argv[1])
compaction.compact(Registry(root), CatalogLog(root / "catalog_log"), created=datetime(2026, 2, 1, tzinfo=UTC))
"""


@pytest.mark.faults
def test_a_killed_compaction_leaves_nothing_behind(registry: Registry, log: CatalogLog) -> None:
    served = registry.open_current()
    expected = shown(some_items(log, served))
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(registry.root)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (registry.versions(), registry.current()) == ([served.manifest.version], served.manifest.version)
    registry.open_current()
    assert shown(worker_of(served, log)) == expected
    compact(registry, log, created=datetime(2026, 2, 1, tzinfo=UTC))
    assert not list((registry.root / "versions").glob(".staged-*"))
    assert shown(worker_of(registry.open_current(), log)) == expected


def test_the_commands(registry: Registry, log: CatalogLog, encodable_run: Path, encodable_work: Path) -> None:
    old = registry.open_current()
    some_items(log, old)
    end = log.end

    def call(app: Any, *options: object) -> str:
        arguments = [*map(str, options), "--registry", str(registry.root)]
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    assert f"serving {old.manifest.version}" in call(catalogue.app, "compact", "--no-current")
    new = registry.versions()[-1]
    printed = call(catalogue.app, "show")
    assert f"records 0 to {end}" in printed
    assert f"* {old.manifest.version}  stands at 0, with 0 records folded in" in printed
    assert f"  {new}  stands at {end}, with 32 records folded in" in printed
    call(publish.app, "--to", new)
    assert f"nothing new in the log: {new}" in call(catalogue.app, "compact")
    shutil.rmtree(old.path)
    assert f"records from {end} on are needed" in call(catalogue.app, "trim")
    options = "--run", encodable_run, "--data", encodable_work
    with pytest.raises(ConfigError, match="publish with --fold"):
        call(publish.app, *options)
    assert "published" in call(publish.app, *options, "--fold")
    assert registry.open_current().manifest.catalog_sequence == end
