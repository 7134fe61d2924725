"""Tables of `windfire bench rere`; the marks are `rere-DATASET`, `-unmasked`, `-differences` and `-learning`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from benchmarks.table import Table, interval_text, share_text
from recsys.evaluation.metrics import KS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.table import Table as RichTable

    from benchmarks.figures import Figure, Report

    Named = Mapping[str, Figure]
    Build = Callable[[str, Named, Mapping[str, Any]], Table]


def _measured(dataset: str, figures: Named) -> list[str]:
    """The arms, in the order in which they were measured."""
    pattern = re.compile(rf"rere\.{dataset}\.(\w+)\.masked\.ndcg@10")
    return [match[1] for name in figures if (match := pattern.fullmatch(name))]


def accuracy_table(dataset: str, figures: Named, methods: Mapping[str, Any], view: str = "masked") -> Table:
    """Recall at every K and NDCG at some, with what is recommended beside."""
    rows = []
    for method in _measured(dataset, figures):
        stem = f"rere.{dataset}.{method}.{view}"
        metrics = [*(f"recall@{k}" for k in KS), "ndcg@3", "ndcg@10", "coverage@10", "invalid@50"]
        rows.append([methods[method]["title"], *(share_text(figures[f"{stem}.{metric}"]) for metric in metrics)])
    header = ["arm", *(f"Recall@{k}" for k in KS), "NDCG@3", "NDCG@10", "coverage@10", "invalid@50"]
    return Table(f"{dataset}: history {view}", header, rows)


def unmasked_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """The same, nothing masked."""
    return accuracy_table(dataset, figures, methods, "unmasked")


def differences_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """Differences to the controls with their intervals, history masked."""
    rows = []
    for method in _measured(dataset, figures):
        for other in methods[method]["against"]:
            stem = f"rere.{dataset}.{method}.masked"
            if f"{stem}.recall@1.minus.{other}" not in figures:
                continue
            found = [figures[f"{stem}.{metric}.minus.{other}"] for metric in _SHOWN]
            cells = [f"{share_text(one, signed=True)} ({interval_text(one, signed=True)})" for one in found]
            smallest = share_text(figures[f"{stem}.ndcg@3.detectable.{other}"])
            rows.append([methods[method]["title"], methods[other]["title"], *cells, smallest])
    header = ["arm", "minus", *(_title(metric) for metric in _SHOWN), "detectable NDCG@3"]
    return Table(f"{dataset}: differences inside seeds and users, history masked", header, rows)


def learning_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """What the training on top took, and how it went."""
    columns = {
        "CPU minutes": "cpu_minutes", "steps": "steps", "best step": "best_step", "valid NDCG@10": "valid_ndcg@10",
        "groups with a hit": "hit_rate", "without advantage": "zero_advantage", "diversity": "diversity",
        "hinted": "hinted", "divergence": "kl",
    }  # fmt: skip
    rows = []
    for method in _measured(dataset, figures):
        cells = [_number(figures.get(f"rere.{dataset}.{method}.{metric}")) for metric in columns.values()]
        rows.append([methods[method]["title"], *cells])
    return Table(f"{dataset}: the training on top, mean of the seeds", ["arm", *columns], rows)


_SHOWN: Final = ("recall@1", "recall@5", "recall@10", "recall@50", "ndcg@3", "ndcg@10")
TABLES: Final[dict[str, Build]] = {
    "": accuracy_table,
    "unmasked": unmasked_table,
    "differences": differences_table,
    "learning": learning_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest.partition("-")[2] in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `rere-DATASET` or `rere-DATASET-KIND`."""
    dataset, _, kind = rest.partition("-")
    return TABLES[kind](dataset, {figure.name: figure for figure in report.figures}, report.settings["methods"])


def rere_overview(report: Report) -> list[RichTable]:
    """The tables that a terminal shows after `windfire bench rere`."""
    named = {figure.name: figure for figure in report.figures}
    methods, datasets = report.settings["methods"], report.settings["datasets"]
    tables = [build(dataset, named, methods) for dataset in datasets for build in TABLES.values()]
    return [table.rich() for table in tables if table.rows]


def _title(metric: str) -> str:
    return metric.replace("recall", "Recall").replace("ndcg", "NDCG")


def _number(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:.1f}" if figure.unit in {"minutes", "steps"} else f"{figure.value:.4f}"
