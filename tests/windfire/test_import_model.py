"""From somebody else's model to HTTP answers, by the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from benchmarks.example_generator import Example
from recsys.bundle import Registry
from recsys.errors import ConfigError
from serving.app import create_app
from serving.settings import Settings
from windfire.commands import evaluate, import_model, publish, train


def call(app: object, *arguments: object) -> str:
    texts = [str(argument) for argument in arguments]
    done = CliRunner().invoke(app, texts, catch_exceptions=False)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def published(foreign: Example, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Registry and work directory after import-model, train draft-head and publish."""
    folder = tmp_path_factory.mktemp("published")
    run, head, registry = folder / "run", folder / "head", folder / "registry"
    said = call(
        import_model.app, "minionerec", foreign.model, "--sids", foreign.sids, "--data", foreign.work, "--out", run
    )
    assert "licence: apache-2.0" in said
    assert "items: 60 with a semantic ID (4 x 4 x 4 codes), 0 of the catalogue without" in said
    (folder / "head.yaml").write_text("{steps: 10, batch: 4, samples: 2, evaluate_every: 10, evaluate_users: 10}")
    said = call(
        train.app, "draft-head", "--freeze-backbone", "--run", run, "--data", run / "work", "--out", head,
        "--config", folder / "head.yaml",
    )  # fmt: skip
    assert "head against the model's own beam: the same first item" in said
    assert "licence of the weights: apache-2.0" in said
    call(publish.app, "--run", head, "--data", run / "work", "--registry", registry)
    return registry, run / "work"


@pytest.mark.parametrize("decoder", ["beam", "nezha", "speculative"])
def test_every_decoder_answers_over_http(published: tuple[Path, Path], decoder: str, tmp_path: Path) -> None:
    settings = Settings(registry=published[0], state=tmp_path / "state", decoder=decoder, beam=20)
    question = {"history": ["item-0003", "item-0007"], "n": 12, "filters": {"deny": ["item-0009"]}}
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/v1/recommend", json={"user_id": "nobody", **question}).json()
    shown = [item["item_id"] for item in answer["items"]]
    assert len(set(shown)) == 12
    assert not set(shown) & {"item-0003", "item-0007", "item-0009"}
    assert {item["source"] for item in answer["items"]} == {decoder}
    assert answer["decoder"] == decoder
    assert answer["bundle_version"] == Registry(published[0]).current()


def test_it_is_evaluated_as_any_bundle(published: tuple[Path, Path]) -> None:
    registry, work = published
    shared = ("--registry", registry, "--data", work, "--decoder")
    beam, speculative = (call(evaluate.app, *shared, name) for name in ("beam", "speculative"))
    assert beam.partition("ndcg@1 ")[2] == speculative.partition("ndcg@1 ")[2] != ""


def test_the_weights_are_not_trained(foreign_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not ours to change"):
        call(
            train.app, "draft-head", "--no-freeze-backbone", "--run", foreign_run, "--data", foreign_run / "work",
            "--out", tmp_path,
        )  # fmt: skip
