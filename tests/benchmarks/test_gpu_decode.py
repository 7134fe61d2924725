"""The GPU script on the CPU: its methods answer rightly at sizes that can be enumerated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.decode import TINY, Methods, Shape, main

CPU = torch.device("cpu")
EVERYTHING = replace(TINY, beam=10_000)


def built(shape: Shape = TINY, seed: int = 1) -> tuple[Methods, torch.Tensor]:
    methods = Methods(shape, seed=seed, device=CPU, dtype=torch.float64)
    ids = torch.randint(24, (2, 5), generator=torch.Generator().manual_seed(seed))
    return methods, ids


def enumerated(methods: Methods, hidden: torch.Tensor) -> dict[int, float]:
    """Log-probability of every leaf that may be shown, one path at a time, from states (L + 1, H)."""
    catalogue, head = methods.catalogue, methods.head
    paths = [(0, hidden[0], 0.0)]
    for level in range(3):
        longer = []
        for node, state, score in paths:
            codes = [int(code) for code in catalogue.code[level][node] if code >= 0]
            logits = (hidden[level + 1] + state) @ head.outputs[level]
            scores = logits[codes].float().log_softmax(0)
            for place, code in enumerate(codes):
                following = (
                    state if level == 2 else torch.tanh(head.inputs[level][code] + state @ head.recurrent[level])
                )
                longer.append((int(catalogue.first[level][node]) + place, following, score + float(scores[place])))
        paths = longer
    return {node: score for node, _, score in paths if catalogue.alive[2][node]}


def test_nezha_at_full_width_is_the_enumeration() -> None:
    methods, ids = built(EVERYTHING)
    nodes, scores = methods.nezha(ids)
    hidden = methods._read_with_placeholders(ids)[0][:, -4:]
    for row in range(2):
        expected = enumerated(methods, hidden[row])
        finite = scores[row] > -torch.inf
        found = dict(zip(nodes[row][finite].tolist(), scores[row][finite].tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert [found[node] for node in expected] == pytest.approx(list(expected.values()), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_repaired_speculation_is_the_beam(seed: int) -> None:
    methods, ids = built(TINY, seed)
    nodes, scores = methods.speculative_repaired(ids)
    expected, their_scores = methods.beam(ids)
    assert nodes.tolist() == expected.tolist()
    torch.testing.assert_close(scores, their_scores, rtol=1e-5, atol=1e-6)


def test_where_everything_is_drafted_one_forward_is_enough() -> None:
    methods, ids = built(EVERYTHING)
    nodes, scores = methods.speculative(ids)
    expected, their_scores = methods.beam(ids)
    torch.testing.assert_close(scores, their_scores, rtol=1e-5, atol=1e-6)
    assert [set(row) for row in nodes.tolist()] == [set(row) for row in expected.tolist()]


@pytest.mark.parametrize("name", ["nezha", "beam", "speculative_repaired", "flat"])
def test_nothing_that_is_gone_is_answered(name: str) -> None:
    methods, ids = built()
    nodes, scores = getattr(methods, name)(ids)
    assert methods.catalogue.alive[2][nodes][scores > -torch.inf].all()
    assert (scores.diff(dim=1) <= 0).all()


def test_the_script_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["--tiny", "--device", "cpu", "--dtype", "float32", "--no-flat", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["about"]["shape"]["items"] == TINY.items
    rows = [row for row in found["figures"] if "method" in row]
    assert len(rows) == len(TINY.prompts) * len(TINY.batches) * 5
    assert all(row["p50_ms"] > 0 for row in rows)


def test_without_a_gpu_the_script_says_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--json", str(tmp_path / "never.json")]) == 2
    assert "--tiny" in capsys.readouterr().err
