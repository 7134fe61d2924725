"""The pooler's own guards, in vLLM's environment but without a server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.vllm_server import PYTHON
from recsys.backends.vllm_format import Status
from recsys.decoding.eligibility import Eligibility

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("pooler_statuses.py")


def test_states_that_are_not_all_there_are_never_answered_from(exported: Any, tmp_path: Path) -> None:
    history = np.array([5, 17, 200], dtype=np.int32)
    with torch.inference_mode():
        states = exported.model.encode(torch.from_numpy(history.astype(np.int64))[None], torch.tensor([3]))[0]
    np.save(tmp_path / "states.npy", states.numpy())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, SCRIPT, exported.path, tmp_path / "states.npy"],
        capture_output=True, text=True, cwd=tmp_path, env=environment | {"NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cut by the prefix cache"] == [Status.TOO_FEW_ROWS, [], []]
    assert found["not finite"] == [Status.NOT_FINITE, [], []]
    assert found["bad parameters"] == [Status.BAD_REQUEST, [], []]
    assert found["goes on"] is None
    status, items, _ = found["everything"]
    assert (status, len(items)) == (Status.DONE, exported.model.config.num_items - 2)
    decoder = exported.decoder()
    masked = Eligibility(None, [np.array([1, 2])])
    for name, beam, eligibility in (("whole", 20, masked), ("defaults", 50, Eligibility())):
        expected = decoder.decode([history], k=10, beam=beam, eligibility=eligibility).ranked[0]
        status, items, scores = found[name]
        assert status == Status.DONE
        np.testing.assert_array_equal(items, expected.items)
        np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-4)
