"""The parts `peers` and `speculative` on a ring of 24 items: every declared figure, and answers that can be checked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from benchmarks.decoding_parts import peers, speculative
from benchmarks.decoding_parts.goodput import Rate, _goodput, open_loop, sweep
from benchmarks.decoding_parts.lab import Lab, long_histories, open_lab
from benchmarks.decoding_parts.peers_quality import overlap
from benchmarks.decoding_parts.settings import PeersSettings
from benchmarks.decoding_parts.timing import take_turns
from benchmarks.settings_file import load_settings
from recsys.datasets.prepared import PreparedData
from recsys.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.figures import Report

SMALL = {
    "steps": 3, "batch_tokens": 64, "warmup_steps": 1, "evaluate_every": 3, "evaluate_users": 10, "bf16": False,
    "checkpoint_every": 3, "teacher": {"kind": "none"},
}  # fmt: skip
SIZES = {"d_model": 16, "layers": 1, "heads": 2, "max_history": 4}
TOY = {
    "seed": 1, "dataset": "ring", "users": 20, "hf_users": 5, "history": 4, "answer": 6, "beams": [3, 8],
    "quality_beams": [3, 10], "ks": [2, 10], "rounds": 4, "slow_rounds": 2, "slow": ["hf_generate"], "batches": [2],
    "batch_rounds": 2, "slow_batch_rounds": 1, "drafts": [1.0, 2.0],
    "ann": {
        "hnsw_links": 8, "hnsw_build": 16, "hnsw_search": 32, "hnsw_most": 1000, "ivf_lists": 1.0, "ivf_probes": 4,
        "pq_bytes": 4,
    },
    "goodput": {
        "limits_ms": [5000], "shares": [0.2, 0.4], "seconds": 0.1, "least": 5, "batch": 4, "recall_share": 0.9,
    },
    "train": {
        "token": SMALL | {"model": SIZES | {"shape": "token", "backbone": "huggingface"}},
        "compact": SMALL | {"model": SIZES | {"shape": "compact"}},
    },
}  # fmt: skip
METHODS = {
    "qwen3": ("hf_generate", "beam", "speculative", "medusa", "mtp", "nezha"),
    "own": ("beam", "medusa", "mtp", "nezha"),
    "compact": ("nezha", "flat", "ann_hnsw", "ann_ivfpq"),
}
SENT = ("qwen3_beam", "qwen3_medusa", "qwen3_mtp", "qwen3_nezha", "compact_nezha", "compact_flat", "compact_ann_hnsw")


@pytest.fixture
def settings() -> PeersSettings:
    # wide enough a beam for Recall@10, and a head of 10 for both
    return PeersSettings.model_validate(TOY | {"quality_beams": [10, 12], "ks": [10]})


@pytest.fixture
def lab(prepared: Path, settings: PeersSettings, tmp_path: Path) -> Lab:
    return open_lab(PreparedData.load(prepared), settings, tmp_path / "runs", say=lambda _: None)


def names(report: Report) -> set[str]:
    return {figure.name for figure in report.figures}


def times(backbone: str, beam: int, methods: Sequence[str]) -> set[str]:
    stem = f"decoding.{backbone}.beam{beam}"
    found = {f"{stem}.{method}.{end}" for method in (*methods, "prefill") for end in ("ms", "p95_ms", "p99_ms")}
    found |= {f"{stem}.{method}.over_nezha" for method in (*methods, "prefill") if method != "nezha"}
    return found | {f"{stem}.{method}.batch2_per_second" for method in methods}


def test_every_peer_has_its_figures(lab: Lab, settings: PeersSettings) -> None:
    report = peers.report(lab, settings, "windfire bench decoding --part peers", say=lambda _: None)
    expected = {name for b, methods in METHODS.items() for beam in (3, 8) for name in times(b, beam, methods)}
    for beam in (10, 12):
        expected |= {f"decoding.qwen3.beam{beam}.{m}.recall@10" for m in METHODS["qwen3"][1:]}
        expected |= {f"decoding.qwen3.beam{beam}.{m}.agreement@10" for m in METHODS["qwen3"][2:]}
        expected |= {f"decoding.compact.beam{beam}.{m}.recall@10" for m in METHODS["compact"]}
        expected |= {f"decoding.compact.beam{beam}.{m}.agreement@10" for m in ("ann_hnsw", "ann_ivfpq")}
    expected |= {f"decoding.goodput.{sent}.recall@10" for sent in SENT}
    expected |= {f"decoding.goodput.{sent}.p99_5000ms.requests_per_second" for sent in SENT}
    assert names(report) == expected
    named = {figure.name: figure for figure in report.figures}
    assert named["decoding.qwen3.beam10.speculative.agreement@10"].value == 1.0
    assert named["decoding.compact.beam10.ann_hnsw.agreement@10"].value > 0.95
    assert named["decoding.qwen3.beam3.hf_generate.ms"].n == 2
    assert named["decoding.qwen3.beam3.nezha.ms"].n == 4
    assert all(f.low <= f.value <= f.high for f in report.figures if f.low is not None and f.high is not None)
    tables = [build(named) for build in peers.TABLES.values()]
    assert [len(table.rows) for table in tables] == [2 * 17, 2 * 14, 2 * 9, 7]
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)


def test_generate_is_asked_for_quality_where_its_time_is_taken(prepared: Path, tmp_path: Path) -> None:
    chosen = PeersSettings.model_validate(TOY | {"beams": [10], "quality_beams": [10], "ks": [10]})
    lab = open_lab(PreparedData.load(prepared), chosen, tmp_path / "runs", say=lambda _: None)
    report = peers.report(lab, chosen, "windfire bench decoding --part peers", say=lambda _: None)
    named = {figure.name: figure for figure in report.figures}
    assert named["decoding.qwen3.beam10.hf_generate.agreement@10"].value == 1.0
    assert named["decoding.qwen3.beam10.hf_generate.agreement@10"].n == 5


def test_every_draft_has_its_figures(lab: Lab, settings: PeersSettings) -> None:
    report = speculative.report(lab, settings, "windfire bench decoding --part speculative", say=lambda _: None)
    both = {"ms", "forwards", "tokens"}
    expected = set()
    for beam in (3, 8):
        stem = f"decoding.speculative.beam{beam}"
        expected |= {f"{stem}.prefill.ms"} | {f"{stem}.beam.{end}" for end in both}
        drafted = both | {"over_beam", "tokens_over_beam"}
        expected |= {f"{stem}.draft{width}.{end}" for width in (100, 200) for end in drafted}
    assert names(report) == expected  # two levels: no draft is verified, none is counted
    named = {figure.name: figure for figure in report.figures}
    (table,) = [build(named) for build in speculative.TABLES.values()]
    assert len(table.rows) == 2 * 4
    assert named["decoding.speculative.beam3.beam.forwards"].value == 2.0


def test_a_finished_training_is_not_repeated(prepared: Path, settings: PeersSettings, tmp_path: Path) -> None:
    data, said = PreparedData.load(prepared), list[str]()
    first = open_lab(data, settings, tmp_path / "runs", say=said.append)
    second = open_lab(data, settings, tmp_path / "runs", say=said.append)
    assert first.cpu_seconds == second.cpu_seconds
    assert said[:5] == said[5:]


def test_no_history_of_the_length_is_said(prepared: Path) -> None:
    data = PreparedData.load(prepared)
    assert {len(history) for history in long_histories(data, 4)} == {4}
    with pytest.raises(DataError, match="so long a history"):
        long_histories(data, 40)


def test_slow_methods_take_fewer_turns() -> None:
    seen: dict[str, list[int]] = {"fast": [], "slow": []}
    calls = {name: seen[name].append for name in seen}
    found = take_turns(calls, {"fast": 6, "slow": 2}, np.random.default_rng(0), warm_up=0)
    assert len(seen["fast"]) == 6
    assert len(seen["slow"]) == np.count_nonzero(~np.isnan(found["slow"])) == 2


def test_overlap_knows_no_order_and_no_padding() -> None:
    exact = np.array([[1, 2, -1], [4, 5, 6], [-1, -1, -1]], dtype=np.int32)
    found = np.array([[2, 1, -1], [6, 7, 8], [1, 2, 3]], dtype=np.int32)
    np.testing.assert_allclose(overlap(found, exact), [1.0, 1 / 3, 0.0])


def test_latency_counts_the_wait_from_the_intended_arrival(settings: PeersSettings) -> None:
    histories = [np.array([1], np.int32)]
    sent: list[int] = []

    def answer(batch: Sequence[object]) -> None:
        sent.append(len(batch))
        time.sleep(0.02)

    found = open_loop(answer, histories, np.array([0.0, 0.001, 0.002, 0.003, 0.004, 0.005]), settings.goodput)
    assert sent == [1, 4, 1]  # the first alone, then what came meanwhile, at most a batch
    assert (found[1:5] >= 0.035).all()
    assert found[5] >= 0.055


def test_a_hopeless_rate_is_given_up(settings: PeersSettings) -> None:
    tight = settings.goodput.model_copy(update={"limits_ms": [1]})
    histories = [np.array([1], np.int32)]
    found = open_loop(lambda _: time.sleep(0.01), histories, np.zeros(40), tight)
    assert np.isinf(found[-1])
    rates = sweep(lambda _: time.sleep(0.01), histories, tight, np.random.default_rng(0))
    assert len(rates) == 1
    assert rates[0].p99_ms > 1


def test_goodput_ends_at_the_first_rate_that_breaks_the_limit() -> None:
    rates = [Rate(10.0, 5.0, 100), Rate(20.0, 9.0, 200), Rate(30.0, 11.0, 300), Rate(40.0, 8.0, 400)]
    kept = _goodput("g", rates, 10, "")
    assert (kept.value, kept.n) == (20.0, 200)
    assert _goodput("g", rates, 4, "").value == 0.0


def test_the_committed_settings_are_valid_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    whole, quick = (load_settings(PeersSettings, peers.CONFIG, quick=quick) for quick in (False, True))
    assert quick.rounds < whole.rounds
    assert max(whole.ks) <= max(whole.quality_beams)
    path = tmp_path / "peers.yaml"
    path.write_text(yaml.safe_dump(TOY | {"users": 0}))
    with pytest.raises(ConfigError) as raised:
        load_settings(PeersSettings, path, quick=False)
    assert raised.value.field == "users"
