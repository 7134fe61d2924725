from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from benchmarks.redis_server import free_port
from feature_store.embedded import EmbeddedFeatureStore
from feature_store.standard import USER_RECENT
from feature_store.store import Merge
from recsys.bundle import Registry
from recsys.bundle.promotion import moves
from recsys.errors import ConfigError, DataError, GateError, InputError, UnavailableError, WindfireError
from recsys.records import EVENTS, TablesManifest
from recsys.storage import read_json, write_json_atomically
from windfire.commands import publish, recommend


def call(app: object, *arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    if isinstance(done.exception, WindfireError):
        raise done.exception
    return done


def test_publish_list_and_rollback(tiny_registry: Registry, tiny_work: Path, tiny_run: Path) -> None:
    root, served = tiny_registry.root, tiny_registry.current()
    again = call(publish.app, "--registry", root, "--run", tiny_run, "--data", tiny_work)
    assert f"unchanged: this content is published as {served}" in again.stdout
    assert f"* {served}  48 items  valid.ndcg@10=0.1000" in call(publish.app, "--registry", root, "--list").stdout
    assert f"serving {served}" in call(publish.app, "--registry", root, "--to", served).stdout
    with pytest.raises(InputError, match="before the current"):
        call(publish.app, "--registry", root, "--rollback")
    with pytest.raises(ConfigError, match="nothing to publish"):
        call(publish.app, "--registry", root, "--run", tiny_run)


def test_the_gate_stands_before_a_publish(
    tiny_registry: Registry, tiny_work: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, served = tiny_registry.root, tiny_registry.current()
    run = tmp_path / "worse"
    shutil.copytree(tiny_run, run)
    write_json_atomically(
        run / "manifest.json", read_json(run / "manifest.json") | {"metrics": {"valid.ndcg@10": 0.09}}
    )
    config = read_json(run / "model" / "config.json")
    write_json_atomically(run / "model" / "config.json", config | {"dropout": 0.123})
    arguments = ("--registry", root, "--run", run, "--data", tiny_work)
    with pytest.raises(GateError, match=r"valid\.ndcg@10 0\.1000 -> 0\.0900 \(-10\.0%, allowed -5\.0%\)"):
        call(publish.app, *arguments)
    (_, worse) = tiny_registry.versions()
    assert tiny_registry.current() == served, "it is published and not served"
    with pytest.raises(GateError):
        call(publish.app, "--registry", root, "--to", worse)
    monkeypatch.setenv("WINDFIRE_GATE_TOLERANCES", '{"valid.ndcg@10": 0.2}')
    assert "gate: passed" in call(publish.app, "--registry", root, "--to", worse).stdout
    assert f"serving {served}" in call(publish.app, "--registry", root, "--rollback").stdout
    monkeypatch.setenv("WINDFIRE_GATE_TOLERANCES", '{"*": 0}')
    forced = call(publish.app, *arguments, "--force", "we know")
    assert f"unchanged: this content is published as {worse}" in forced.stdout
    assert "gate: forced: valid.ndcg@10 0.1000" in forced.stdout
    assert moves(tiny_registry)[-1]["reason"] == "we know"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.txt"
    path.write_text('ann\nnobody\n{"user_id": "guest", "history": ["item-09"]}\n')
    return path


def tables_of_ann(folder: Path) -> Path:
    row = {"event_id": "e", "user_id": "ann", "item_id": "item-03", "time": 1, "seq": 0, "action": "click"}
    (folder / "events").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema=EVENTS), folder / "events" / "part-0.parquet")
    TablesManifest("own", False, {}, {}).save(folder)
    return folder


def state_of_ann(folder: Path) -> Path:
    store = EmbeddedFeatureStore(folder / "features")
    event = {"time": 1, "seq": 0, "event_id": "e", "item_id": "item-03", "action": "click"}
    store.merge([Merge(USER_RECENT, "ann", [event])])
    store.close()
    return folder


def store_of_ann(folder: Path) -> str:
    return f"lmdb:{state_of_ann(folder) / 'features'}"


@pytest.mark.parametrize(
    ("option", "make"), [("--data", tables_of_ann), ("--state", state_of_ann), ("--store", store_of_ann)]
)
def test_histories_come_from_tables_or_from_a_server(
    tiny_registry: Registry, users: Path, tmp_path: Path, option: str, make: object
) -> None:
    place = make(tmp_path / "place")  # type: ignore[operator]
    out = tmp_path / "out"
    done = call(recommend.app, "--registry", tiny_registry.root, "--users", users, "--out", out, option, place)
    assert "3 users scored, 0 lines rejected" in done.stdout
    rows = pq.read_table(out / "part-00000.parquet").to_pylist()
    assert [(row["user_id"], row["served_by"], row["history"]) for row in rows] == [
        ("ann", "nezha", 1),
        ("nobody", "popular_scene", 0),
        ("guest", "nezha", 1),
    ]
    assert [len(row["items"]) for row in rows] == [20, 20, 20]
    assert "item-03" not in rows[0]["items"]
    assert read_json(out / "manifest.json")["bundle_version"] == tiny_registry.current()
    again = call(recommend.app, "--registry", tiny_registry.root, "--users", users, "--out", out, option, place)
    assert again.exit_code == 0


def test_bad_calls_are_named(tiny_registry: Registry, users: Path, tmp_path: Path) -> None:
    base = ("--registry", tiny_registry.root, "--out", tmp_path / "out", "--users")
    with pytest.raises(InputError, match="no such file"):
        call(recommend.app, *base, tmp_path / "gone")
    with pytest.raises(ConfigError, match="one place"):
        call(recommend.app, *base, users, "--state", tmp_path, "--data", tmp_path)
    with pytest.raises(UnavailableError, match="it resumes"):
        call(recommend.app, *base, users, "--store", f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(InputError, match="no histories"):
        call(recommend.app, *base, users, "--state", tmp_path)
    with pytest.raises(DataError, match="windfire import"):
        call(recommend.app, *base, users, "--data", tmp_path)
    with pytest.raises(ConfigError, match="no such decoder"):
        call(recommend.app, *base, users, "--decoder", "oracle")
