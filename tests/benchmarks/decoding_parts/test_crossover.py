"""The part `crossover` on toys, the command that starts the parts, and the tables that are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.decoding_parts import crossover, figures_file, load
from benchmarks.decoding_parts.ann import BUILDERS, AnnDecoder, build_hnsw, faiss_threads, index_bytes
from benchmarks.decoding_parts.crossover_tables import crossing
from benchmarks.decoding_parts.settings import AnnSettings, CrossoverSettings
from benchmarks.figures import Figure, Report
from benchmarks.settings_file import load_settings
from benchmarks.tables import render
from recsys.decoding.eligibility import Eligibility
from recsys.decoding.flat import FlatDecoder
from recsys.errors import ConfigError, DataError, InputError
from recsys.models import FlatRecommender, ItemFeatures, RecommenderConfig
from windfire.commands.bench import app

if TYPE_CHECKING:
    from pathlib import Path

ANN = {
    "hnsw_links": 8, "hnsw_build": 32, "hnsw_search": 64, "hnsw_most": 600, "ivf_lists": 1.0, "ivf_probes": 8,
    "pq_bytes": 4,
}  # fmt: skip
TOY = {
    "seed": 1, "items": [300, 900], "arithmetic": 9000, "skew": [0.7, 1.0, 0.0], "history": 3, "answer": 5,
    "beams": [4, 8], "d_model": 16, "layers": 1, "heads": 2, "spread": [1.0, 0.6, 0.4, 0.3], "rounds": 3, "updates": 4,
    "ann": ANN,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "crossover.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return path


def test_every_size_has_its_figures_and_is_measured_once(config: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "c.json", tmp_path / "work"
    call = ["decoding", "--part", "crossover", "--config", str(config), "--work", str(work), "--json", str(out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    first = Report.load(out)
    expected = {
        f"decoding.crossover.items9000.{end}" for end in ("nezha.bytes", "flat.bytes", "flat.ms", "ann_ivfpq.bytes")
    }
    for items, indexes in ((300, ("ann_hnsw", "ann_ivfpq")), (900, ("ann_ivfpq",))):
        stem = f"decoding.crossover.items{items}"
        expected |= {f"{stem}.{m}.ms" for m in ("prefill", "nezha_beam4", "nezha_beam8", "flat", *indexes)}
        expected |= {f"{stem}.{m}.{end}" for m in ("nezha", "flat", *indexes) for end in ("bytes", "update_ms")}
        expected |= {f"{stem}.{m}.build_s" for m in ("nezha", *indexes)}
        expected |= {f"{stem}.{m}.agreement@5" for m in indexes}
    found = {figure.name: figure for figure in first.figures}
    assert {name for name in found if ".crossover.items" in name} == expected
    assert found["decoding.crossover.items900.flat.bytes"].value == 900 * 16 * 4
    assert found["decoding.crossover.items9000.flat.bytes"].value == 9000 * 16 * 4
    assert found["decoding.crossover.items300.ann_hnsw.agreement@5"].value > 0.9
    again = CliRunner().invoke(app, call)
    assert again.output.count("measured before") == 2
    assert Report.load(out).figures == first.figures


def test_parts_are_chosen_by_name(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such part"):
        load("colours")
    two = CliRunner().invoke(app, ["decoding", "--part", "peers", "--part", "crossover", "--config", str(config)])
    assert isinstance(two.exception, ConfigError)
    monkeypatch.setenv("WINDFIRE_DATA", str(tmp_path / "nowhere"))
    absent = CliRunner().invoke(app, ["decoding", "--part", "speculative", "--quick", "--work", str(tmp_path)])
    assert absent.exit_code == 1
    assert "speculative was left out: a data set of the benchmark is not there" in " ".join(absent.output.split())
    assert [figures_file(name) for name in ("latency", "peers")] == ["decoding.json", "decoding_peers.json"]


def test_the_tables_of_a_part_are_rendered_from_its_own_file(tmp_path: Path) -> None:
    settings = CrossoverSettings.model_validate(TOY)
    figures = crossover.of_size(300, settings)
    Report("windfire", {}, [1], figures, "", {}).save(tmp_path / "decoding_crossover.json")
    lines = render("decoding-crossover", tmp_path).splitlines()
    assert lines[0] == "| items | prefill | nezha_beam4 | nezha_beam8 | flat | ann_hnsw | ann_ivfpq | ann_ivfpq finds |"
    assert lines[2].startswith("| 300 |")
    assert len(render("decoding-crossover-memory", tmp_path).splitlines()) == 3
    assert "--part peers --json docs/figures/decoding_peers.json" in render("decoding-peers-quality", tmp_path)
    with pytest.raises(DataError, match="no table"):
        render("decoding-crossover-colours", tmp_path)


def _times(nezha: float, flat: float, items: int) -> list[Figure]:
    stem = f"decoding.crossover.items{items}"
    return [Figure(f"{stem}.{name}.ms", value, "ms") for name, value in (("nezha_beam4", nezha), ("flat", flat))]


def test_the_crossing_lies_between_the_sizes_that_enclose_it() -> None:
    settings = CrossoverSettings.model_validate(TOY | {"items": [100, 10_000], "beams": [4]})
    (found,) = crossing([*_times(2.0, 1.0, 100), *_times(2.0, 4.0, 10_000)], settings)
    assert (found.name, round(found.value)) == ("decoding.crossover.beam4.items", 1000)
    assert crossing([*_times(2.0, 3.0, 100), *_times(2.0, 4.0, 10_000)], settings) == []


@pytest.mark.parametrize("name", list(BUILDERS))
def test_an_index_finds_what_the_dot_product_finds(name: str) -> None:
    rng = np.random.default_rng(3)
    items = 400
    codes = rng.integers(4, size=(items, 2)).astype(np.int32)
    none = np.zeros((items, 0), np.float32)
    model = FlatRecommender(
        RecommenderConfig((4, 4), items, 0, 0, shape="flat", d_model=16, layers=1, heads=2),
        ItemFeatures(codes, none, none, np.ones(items, np.int64)),
    ).eval()
    vectors = model.item_vectors().detach().numpy()
    # one byte per number: quantisation then loses little
    index = BUILDERS[name](vectors, AnnSettings.model_validate(ANN | {"pq_bytes": 16}))
    histories = [rng.integers(items, size=4).astype(np.int32) for _ in range(10)]
    exact = FlatDecoder(model).decode(histories, k=10, beam=1, eligibility=Eligibility())
    decoder = AnnDecoder(model, index)
    found = decoder.decode(histories, k=10, beam=1, eligibility=Eligibility())
    shared = [len(np.intersect1d(a.items, b.items)) for a, b in zip(exact.ranked, found.ranked, strict=True)]
    assert np.mean(shared) > 8
    assert all((np.diff(answer.scores) <= 0).all() for answer in found.ranked)
    assert index_bytes(index) > 0
    with pytest.raises(InputError, match="whole catalogue"):
        decoder.decode(histories, k=1, beam=1, eligibility=Eligibility(excluded=histories))


def test_threads_of_the_indexes_are_given_back() -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    with faiss_threads(1):
        assert faiss.omp_get_max_threads() == 1
        build_hnsw(np.eye(8, dtype=np.float32), AnnSettings.model_validate(ANN))
    assert faiss.omp_get_max_threads() == before


def test_the_committed_settings_are_valid() -> None:
    whole, quick = (load_settings(CrossoverSettings, crossover.CONFIG, quick=quick) for quick in (False, True))
    assert whole.items == [10**4, 10**5, 10**6, 10**7]
    assert max(quick.items) < max(whole.items)
