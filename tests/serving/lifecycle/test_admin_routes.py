from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from recsys.bundle.pointers import CANARY, Share, write_share
from recsys.bundle.promotion import moves
from recsys.storage import write_bytes_atomically
from serving.app import create_app
from serving.engine import InProcessEngine
from serving.lifecycle.admin_schemas import BundlesAnswer, MovedAnswer
from serving.lifecycle.workers import WorkerReport
from serving.metrics import EngineMetrics
from serving.security.keys import Scope, encode_keys, new_key
from serving.settings import Settings

RELOAD, ROLLBACK = "/v1/admin/bundles/reload", "/v1/admin/bundles/rollback"
HERE = ("127.0.0.1", 50_000)


@pytest.fixture
def admin(versions: Any, server_settings: Settings) -> Iterator[TestClient]:
    changes = {"registry": versions.registry.root, "bundle_poll": timedelta(milliseconds=20)}
    with TestClient(create_app(server_settings.model_copy(update=changes)), client=HERE) as client:
        yield client


def put_worker(versions: Any, **values: Any) -> Path:
    """A second worker, of another host; it never moves."""
    known: dict[str, Any] = {"host": "there", "pid": 7, "born": "", "beat": 4e9}
    report = WorkerReport(**known | values)
    path = Path(versions.registry.root / "workers" / "there-7.json")
    path.write_bytes(msgspec.json.encode(report))
    return path


def test_a_reload_answers_when_the_workers_run_it(admin: TestClient, versions: Any) -> None:
    answer = admin.post(RELOAD, json={"version": versions.good})
    assert answer.status_code == 200, answer.text
    moved = MovedAnswer.model_validate(answer.json())
    assert (moved.version, moved.previous) == (versions.good, versions.old)
    assert moved.verdict == "valid.ndcg@10 0.1000 -> 0.0990 (-1.0%, allowed -5.0%)"
    assert [worker.bundle_version for worker in moved.workers] == [versions.good]
    assert admin.post("/v1/recommend", json={}).json()["bundle_version"] == versions.good
    back = MovedAnswer.model_validate(admin.post(ROLLBACK, json={}).json())
    assert (back.version, back.previous, back.verdict) == (versions.old, versions.good, None)
    assert admin.post("/v1/recommend", json={}).json()["bundle_version"] == versions.old
    again = MovedAnswer.model_validate(admin.post(RELOAD, json={}).json())
    assert (again.version, again.previous) == (versions.old, versions.old)


def test_the_gate_stands_before_a_reload(admin: TestClient, versions: Any) -> None:
    refused = admin.post(RELOAD, json={"version": versions.worse})
    assert (refused.status_code, refused.json()["code"]) == (409, "gate_refused")
    assert "valid.ndcg@10 0.1000 -> 0.0200 (-80.0%, allowed -5.0%)" in refused.json()["message"]
    assert versions.registry.current() == versions.old
    forced = admin.post(RELOAD, json={"version": versions.worse, "force": "a drill"})
    assert (forced.status_code, versions.registry.current()) == (200, versions.worse)
    assert moves(versions.registry)[-1]["reason"] == "a drill"


def test_a_corrupt_bundle_is_named_while_the_old_one_answers(admin: TestClient, versions: Any) -> None:
    codes = versions.registry.path(versions.good) / "codes.npy"
    good = codes.read_bytes()
    codes.write_bytes(b"spoiled")
    answer = admin.post(RELOAD, json={"version": versions.good})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (504, "workers_missing", True)
    assert "codes.npy" in answer.json()["message"]
    assert "refuses it" in answer.json()["message"]
    assert admin.post("/v1/recommend", json={}).json()["bundle_version"] == versions.old
    (worker,) = admin.get("/v1/admin/bundles").json()["workers"]
    assert (worker["bundle_version"], worker["refused_version"]) == (versions.old, versions.good)
    codes.write_bytes(good)
    mended = admin.post(RELOAD, json={})
    assert (mended.status_code, mended.json()["version"]) == (200, versions.good), "set again it is tried at once"


def test_workers_that_do_not_follow_are_named(admin: TestClient, versions: Any) -> None:
    late = put_worker(versions, bundle=versions.old)
    answer = admin.post(RELOAD, json={"version": versions.good, "wait_seconds": 0.2})
    assert answer.status_code == 504
    message = answer.json()["message"]  # on a busy machine it may name the worker of this process, too
    assert message.startswith(f"{versions.good} is set; there-7 runs {versions.old}")
    timer = threading.Timer(0.2, lambda: put_worker(versions, bundle=versions.good))
    timer.start()
    assert admin.post(RELOAD, json={}).status_code == 200
    timer.join()
    late.unlink()


def test_without_a_worker_nobody_claims_success(versions: Any, server_settings: Settings) -> None:
    idle = InProcessEngine(EngineMetrics(), queue_limit=1, batch_limit=1, torch_threads=1)
    settings = server_settings.model_copy(update={"registry": versions.registry.root})
    with TestClient(create_app(settings, engine=idle), client=HERE) as client:
        answer = client.post(RELOAD, json={"version": versions.good, "wait_seconds": 0})
    assert (answer.status_code, answer.json()["message"]) == (504, f"{versions.good} is set; no worker reports")
    idle.close()


@pytest.mark.parametrize("version", ["../../etc", "..", "a/b", ".hidden", "a..b", "", "a" * 129, "v\n", "ä", 7])
def test_names_that_leave_the_registry_are_malformed(admin: TestClient, versions: Any, version: object) -> None:
    for path in (RELOAD, ROLLBACK):
        answer = admin.post(path, json={"version": version})
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "malformed", "body.version")
    assert versions.registry.current() == versions.old


def test_what_cannot_be_done_has_a_code(admin: TestClient, versions: Any) -> None:
    unknown = [admin.post(path, json={"version": "v9"}) for path in (RELOAD, ROLLBACK)]
    assert [(each.status_code, each.json()["code"]) for each in unknown] == [(404, "unknown_version")] * 2
    nothing = admin.post(ROLLBACK, json={})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_before")
    (versions.registry.path(versions.good) / "manifest.json").write_text("{}")
    damaged = admin.post(RELOAD, json={"version": versions.good})
    assert (damaged.status_code, damaged.json()["code"]) == (409, "bad_bundle")
    assert versions.registry.current() == versions.old


def test_the_state_names_all_pointers(admin: TestClient, versions: Any) -> None:
    write_share(versions.registry, CANARY, Share(versions.renamed, 0.25, "salt"))
    state = BundlesAnswer.model_validate(admin.get("/v1/admin/bundles").json())
    assert (state.current, state.shadow) == (versions.old, None)
    assert state.canary is not None
    assert (state.canary.version, state.canary.share, state.canary.salt) == (versions.renamed, 0.25, "salt")
    assert state.versions == [versions.old, versions.good, versions.worse, versions.renamed]
    (versions.registry.root / CANARY).write_text("{")
    spoiled = admin.get("/v1/admin/bundles")
    assert (spoiled.status_code, spoiled.json()["code"]) == (409, "bad_bundle")


@pytest.mark.parametrize("client", [("10.0.0.7", 1), ("testclient", 1), ("::ffff:10.0.0.7", 1)])
def test_other_machines_are_turned_away(versions: Any, server_settings: Settings, client: tuple[str, int]) -> None:
    settings = server_settings.model_copy(update={"registry": versions.registry.root})
    with TestClient(create_app(settings), client=client) as other:
        asks: list[Callable[[], Any]] = [
            lambda: other.get("/v1/admin/bundles"),
            lambda: other.post(RELOAD, json={"version": versions.good}),
            lambda: other.post(ROLLBACK, json={}),
        ]
        assert [(ask().status_code, ask().json()["code"]) for ask in asks] == [(403, "forbidden")] * 3
    assert versions.registry.current() == versions.old


def test_a_key_with_the_scope_may_ask_from_anywhere(versions: Any, server_settings: Settings, tmp_path: Path) -> None:
    made = [new_key(name, (Scope(name),)) for name in ("admin", "recommend")]
    write_bytes_atomically(tmp_path / "keys", encode_keys([stored for stored, _ in made]), mode=0o600)
    settings = server_settings.model_copy(update={"registry": versions.registry.root, "keys_file": tmp_path / "keys"})
    with TestClient(create_app(settings), client=("10.0.0.7", 1)) as client:
        admin, other = [{"Authorization": f"Bearer {key}"} for _, key in made]
        asked = [client.get("/v1/admin/bundles", headers=each) for each in ({}, other, admin)]
        assert [answer.status_code for answer in asked] == [401, 403, 200]
        assert client.post(RELOAD, json={}, headers=admin).status_code == 200
