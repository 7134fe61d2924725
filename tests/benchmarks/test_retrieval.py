from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.figures import Report
from benchmarks.retrieval import CONFIG, Mixture, bench, load, nearest, retrieval_table
from benchmarks.tables import render
from recsys.errors import ConfigError, DataError


def real(count: int = 400, width: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((8, width))
    vectors = centres[rng.integers(8, size=count)] + 0.3 * rng.standard_normal((count, width))
    vectors[0] = 0
    return vectors.astype(np.float32)


def test_the_mixture_has_the_means_and_covariances_of_its_clusters() -> None:
    vectors = real()
    unit = vectors[1:] / np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    drawn = Mixture(vectors, 8, seed=1).draw(20_000, np.random.default_rng(2))
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(drawn.mean(axis=0), unit.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(unit.T), atol=0.02)
    again = Mixture(vectors, 8, seed=1).draw(20_000, np.random.default_rng(2))
    np.testing.assert_array_equal(drawn, again)


def test_settings_name_the_indexes_there_are(tmp_path: Path) -> None:
    path = tmp_path / "retrieval.yaml"
    path.write_text(CONFIG.read_text().replace("short: [flat, hnsw]", "short: [flat, tree]"))
    with pytest.raises(ConfigError, match="no index is called tree"):
        load(path, quick=False)
    path.write_text(CONFIG.read_text().replace("second: [48] ", "second: [47] "))
    with pytest.raises(ConfigError, match="not measured"):
        load(path, quick=False)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        Mixture(np.zeros((5, 3), dtype=np.float32), 2, seed=1)


def test_the_exact_answer_is_exact() -> None:
    vectors = real(40_000)
    mask = np.random.default_rng(3).random(40_000) < 0.5
    queries = vectors[1:4]
    for allowed in (None, mask):
        scores = queries @ vectors.T
        scores[:, ~(np.ones(40_000, bool) if allowed is None else allowed)] = -np.inf
        expected = np.sort(scores, axis=1)[:, -7:]
        rows = nearest(vectors, queries, allowed, 7)
        np.testing.assert_array_equal(np.sort(np.take_along_axis(scores, rows, 1), axis=1), expected)


def test_a_small_run_has_every_figure_and_resumes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "items": 3_000,
        "queries": 20,
        "rounds": 10,
        "answer": 100,
        "components": 8,
        "dimensions": [8, 4],
        "short": ["flat"],
        "second": [8],
    }
    changes |= {"compressor": {"steps": 30, "anchors": 32, "neighbours": 4, "memory": 300}}
    quick = load(None, quick=True)
    searching = {"kind": "flat", "exact_rows": 0, "exact_share": 0}  # else so few vectors are all compared as they are
    settings = quick.model_copy(update=changes | {"indexes": {**quick.indexes, "flat": searching}})
    lines: list[str] = []
    report = bench(settings, "windfire bench retrieval", tmp_path / "work", say=lines.append, real=real())
    figures = {figure.name: figure for figure in report.figures}
    stem = "retrieval.items3000.d16"
    assert figures[f"{stem}.flat.recall@100"].value == 1.0
    assert figures[f"{stem}.hnsw.recall@100"].value > 0.95
    assert figures[f"{stem}.ivf_pq.share1.recall@100"].value == 1.0, "few are eligible: all of them are looked at"
    assert figures[f"{stem}.ivf_pq.bytes_per_item"].value < figures[f"{stem}.flat.bytes_per_item"].value
    assert len(figures) == (3 + 2 + 1) * (3 + 3 * 4)
    assert figures[f"{stem}.flat.within@400"].value == 1.0
    short = "retrieval.items3000.d8"
    assert 0.2 < figures[f"{short}.flat.recall@100"].value < 1, "the exact answer is that of the whole vectors"
    assert figures[f"{short}.flat.recall@100"].value < figures[f"{short}.flat.within@400"].value
    assert figures["retrieval.items3000.d4.flat.recall@100"].value < figures[f"{short}.flat.recall@100"].value
    second = figures[f"{short}.flat_second.recall@100"].value
    assert second == pytest.approx(figures[f"{short}.flat.within@400"].value, abs=1e-3), "four candidates per answer"
    sizes = [figures[f"{each}.flat.bytes_per_item"].value for each in (stem, short)]
    assert sizes[0] - sizes[1] == pytest.approx(8 * 4, abs=0.1)
    assert figures[f"{short}.flat_second.disk_bytes_per_item"].value > figures[f"{stem}.flat.bytes_per_item"].value
    report.save(tmp_path / "retrieval.json")
    assert render("retrieval", tmp_path) == retrieval_table(figures).markdown()
    assert retrieval_table(figures).rows[0][0] == "flat, 3,000 x 16"
    fewer = {name.replace("@100", "@20").replace("@400", "@60"): figure for name, figure in figures.items()}
    assert retrieval_table(fewer).header[4:6] == ["recall@20", "in the nearest 60"]
    again = bench(settings, "windfire bench retrieval", tmp_path / "work", say=lines.append, real=real())
    builds = [figure.value for figure in report.figures if figure.name.endswith("build_s")]
    assert [figure.value for figure in again.figures if figure.name.endswith("build_s")] == builds, "not built again"
    assert Report.load(tmp_path / "retrieval.json").settings["items"] == 3_000
