"""The whole way: a published bundle, `windfire export-vllm`, vLLM over it, and the service that asks it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from benchmarks.vllm_server import POOLING
from recsys.bundle import Registry
from serving.app import create_app
from serving.settings import Settings
from windfire.commands.export_vllm import app

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
QUESTIONS: list[dict[str, Any]] = [
    {"history": ["item-09", "item-10", "item-11"], "n": 20},
    {"history": [f"item-{n:02d}" for n in range(40)], "n": 8, "exclude_seen": False},
    {"history": ["item-30"], "n": 30, "filters": {"brands": ["Brand 1", "Brand 3"], "deny": ["item-01", "item-05"]}},
]


def test_the_service_answers_through_a_real_vllm(
    qwen_registry: Registry, start_vllm: Callable[..., Any], tmp_path: Path
) -> None:
    exported = CliRunner().invoke(app, ["--registry", str(qwen_registry.root), "--out", str(tmp_path / "model")])
    assert exported.exit_code == 0, exported.output
    own = Settings(registry=qwen_registry.root, state=tmp_path / "own")
    with TestClient(create_app(own)) as client:
        expected = [client.post("/v1/recommend", json=question).json() for question in QUESTIONS]
    with start_vllm(tmp_path / "model", *POOLING) as server:
        server.wait_until_ready()
        through = Settings(
            registry=qwen_registry.root, state=tmp_path / "state", vllm_url=server.url,
            vllm_timeout=timedelta(seconds=60),
        )  # fmt: skip
        with TestClient(create_app(through)) as client:
            found = [client.post("/v1/recommend", json=question).json() for question in QUESTIONS]
            metrics = client.get("/metrics").text
    for answer, other in zip(found, expected, strict=True):
        assert [item["source"] for item in answer["items"]] == [item["source"] for item in other["items"]]
        assert {item["item_id"] for item in answer["items"]} == {item["item_id"] for item in other["items"]}
        scores = [[item["score"] for item in one["items"]] for one in (answer, other)]
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-3)
        assert (answer["served_by"], answer["bundle_version"]) == ("nezha", other["bundle_version"])
    assert "windfire_ineligible_items_total 0.0" in metrics
