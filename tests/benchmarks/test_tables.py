from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from benchmarks.figures import FIGURES, ROOT, Figure, Report
from benchmarks.quality_settings import QualitySettings
from benchmarks.table import Table
from benchmarks.tables import pages, quality_overview, render, rewritten
from recsys.errors import DataError
from recsys.evaluation.metrics import GAINS, KS

if TYPE_CHECKING:
    from pathlib import Path

PLACES = {
    "<dataset>": r"[a-z0-9_]+", "<method>": r"[a-z0-9_]+", "<other>": r"[a-z0-9_]+", "<backbone>": r"[a-z0-9_]+",
    "<view>": "(masked|unmasked)", "<group>": "(head|torso|tail)", "<metric>": "(recall|ndcg|mrr|neighbours)",
    "<lists>": "(coverage|gini|popularity|invalid)",
    "<learning>": "(cpu_minutes|steps|best_step|hit_rate|zero_advantage|diversity|reward|hinted|kl)",
    "<k>": r"\d+", "<B>": r"\d+", "<N>": r"\d+", "<percentile>": "(p50|p95|p99)", "<structure>": "(set|bitmap|csr)",
    "<family>": r"[a-z]+", "<decoder>": r"[a-z]+",
    "<store>": "(redis|embedded|feast|feast_hashes|raw_pipeline|raw_mget)",
    "<scores>": "(compared|changed|largest_change)", "<counts>": "(items|true_share|known_prefix)",
    "<quantile>": "(p50|p99)", "<what>": "[a-z_]+", "<sids>": r"[a-z0-9_]+(\.[a-z0-9_]+)?",
    "<scenario>": r"[a-z0-9_]+", "<latency>": "(p50|p95|p99|p999)", "<tier>": r"[a-z0-9_]+", "<kind>": r"[a-z0-9_]+",
    "<fault>": "[a-z_]+", "<stage>": "[a-z_]+", "<count>": "[a-z0-9_]+", "<arm>": "(socket|in_process)",
}  # fmt: skip


def _method(name: str, minus: str) -> list[Figure]:
    figures = [Figure(f"quality.ring.{name}.cpu_minutes", 1.25, "minutes")]
    for view in ("masked", "unmasked"):
        stem = f"quality.ring.{name}.{view}"
        figures += [Figure(f"{stem}.{metric}@{k}", 0.0482, "share", 0.0461, 0.05) for metric in GAINS for k in KS]
        figures += [Figure(f"{stem}.recall_{group}@10", 0.1, "share") for group in ("head", "torso", "tail")]
        figures += [Figure(f"{stem}.{metric}", 0.5, "share") for metric in ("coverage@10", "gini@10", "invalid@50")]
        figures += [Figure(f"{stem}.popularity@10", 31.44, "interactions")]
        figures += [Figure(f"{stem}.{m}@10.minus.{minus}", 0.0031, "share", -0.001, 0.007) for m in ("ndcg", "recall")]
    return figures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    methods = QualitySettings.load().model_dump()["methods"]
    figures = [
        *_method("ease", "popularity"), *_method("nezha", "ease"), *_method("nezha_short", "nezha"),
        *_method("nezha_rnn", "nezha_short"),
        Figure("decoding.d256x4.beam50.prefill.ms", 5.071, "ms"),
        Figure("decoding.d256x4.beam50.nezha.ms", 6.06, "ms"),
        Figure("decoding.d256x4.beam50.nezha.over_prefill", 1.1951, "ratio"),
        Figure("decoding.d256x4.beam50.nezha_bitmap.ms", 7.0, "ms"),
        Figure("decoding.d256x4.beam50.beam.ms", 20.0, "ms"),
        Figure("decoding.d256x4.beam50.nezha_onnx.ms", 3.5, "ms"),
        Figure("decoding.d256x4_2threads.beam50.nezha_onnx.ms", 3.4, "ms"),
    ]  # fmt: skip
    report = Report("windfire bench", {"methods": methods, "datasets": {"ring": {}, "other": {}}}, [1], figures, "", {})
    report.save(tmp_path / "quality.json")
    report.save(tmp_path / "decoding.json")
    return tmp_path


def test_the_committed_pages_show_the_committed_figures() -> None:
    differing = [page.name for page in pages() if rewritten(page.read_text()) != page.read_text()]
    assert differing == [], "run `make tables`"


def test_every_committed_figure_is_documented() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "figures.md").read_text(), re.MULTILINE)
    patterns = [
        re.compile(re.sub(r"<\w+>", lambda place: PLACES[place[0]], re.sub(r"\.", r"\\.", row))) for row in rows
    ]
    names = [figure.name for path in FIGURES.glob("*.json") for figure in Report.load(path).figures]
    assert rows
    assert [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)] == []


def test_main_table(folder: Path) -> None:
    lines = render("quality-ring", folder).splitlines()
    assert lines[0].startswith("| method | Recall@5 |")
    assert lines[1] == "|" + " --- |" + " ---: |" * 8
    assert lines[2].startswith("| EASE, recency | .0482 | .0482 | .0482 | .0482 | .0461 to .0500 | .0482 |")
    assert lines[3].endswith("| 1.2 |")
    assert len(lines) == 4  # the ablation stands in its own table


def test_other_tables(folder: Path) -> None:
    assert "| nezha, compact | EASE, recency | +.0031 | -.0010 to +.0070 |" in render(
        "quality-ring-differences", folder
    )
    assert "| RNN instead of GRU | 320 steps | .0482 | +.0031 |" in render("quality-ring-ablations", folder)
    assert "| EASE, recency | .5000 | .5000 | 31.4 | .1000 |" in render("quality-ring-lists", folder)
    assert render("decoding", folder).splitlines()[2] == "| d256x4, beam 50 | 5.07 | 6.06 (1.20) | 7 | 20 |"
    engines = render("decoding-engines", folder).splitlines()
    assert engines[0] == "| backbone | prefill | nezha | nezha_onnx | beam |"
    assert engines[2:] == ["| d256x4, beam 50 | 5.07 | 6.06 (1.20) | 3.5 | 20 |"]


def test_only_what_stands_between_the_marks_is_replaced(folder: Path) -> None:
    page = "before\n<!-- table:quality-ring -->\nold\nrows\n<!-- /table -->\nafter\n"
    once = rewritten(page, folder)
    assert once.startswith("before\n<!-- table:quality-ring -->\n| method |")
    assert once.endswith("|\n<!-- /table -->\nafter\n")
    assert "old" not in once
    assert rewritten(once, folder) == once


def test_figures_that_are_absent_are_said_to_be(folder: Path, tmp_path: Path) -> None:
    assert render("quality-ring", tmp_path / "nowhere").startswith("*Not measured yet: `windfire bench quality")
    with pytest.raises(DataError, match="hold nothing"):
        render("quality-beauty", folder)
    with pytest.raises(DataError, match="no table"):
        render("speed-ring", folder)
    with pytest.raises(DataError, match="no table"):
        render("quality-ring-colours", folder)


def test_the_terminal_shows_the_tables_that_have_rows(folder: Path) -> None:
    shown = quality_overview(Report.load(folder / "quality.json"))
    assert [table.row_count for table in shown] == [2, 2, 1, 2]


def test_a_table_has_one_line_per_row() -> None:
    assert Table("t", ["a", "b"], [["1", "2"]]).markdown() == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
