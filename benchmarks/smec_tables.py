"""Tables of docs/smec.md: `smec-DATASET` (with labels), `-unsupervised`, `-ablation`, `-differences`, `-chosen`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from benchmarks.smec import FULL, REFERENCE, UNSUPERVISED
from benchmarks.smec_settings import UNTRAINED
from benchmarks.table import Table, interval_text, share_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.table import Table as RichTable

    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]

_SHOWN: Final = ("ndcg@10", "recall@10", "recall@100", "neighbours@10")


def accuracy_table(dataset: str, report: Report, *, unsupervised: bool, ablation: bool = False) -> Table:
    """Every method at every width, under the vectors as they are."""
    figures = _named(report)
    labels = [(FULL, "as they are"), *_labels(report, unsupervised=unsupervised, ablation=ablation)]
    rows = []
    for width in _widths(dataset, figures):
        for label, title in labels:
            stem = f"smec.{dataset}.d{width}.{label}"
            if f"{stem}.ndcg@10" in figures:
                found = [figures[f"{stem}.{metric}"] for metric in _SHOWN]
                cells = [text for figure in found for text in (share_text(figure), interval_text(figure))]
                rows.append([title, str(width), *cells])
    header = ["vectors", "width", "nDCG@10", "95 %", "Recall@10", "95 %", "Recall@100", "95 %", "neighbours", "95 %"]
    return Table(f"{dataset}: {'parts, ' * ablation}{'without' if unsupervised else 'with'} labels", header, rows)


def differences_table(dataset: str, report: Report) -> Table:
    """SMEC minus every other method, with what could have been found."""
    figures = _named(report)
    pattern = re.compile(rf"smec\.{dataset}\.d(\d+)\.({REFERENCE}\w*)\.ndcg@10\.minus\.(\w+)")
    titles = {
        label: title
        for unsupervised in (False, True)
        for ablation in (True, False)
        for label, title in _labels(report, unsupervised=unsupervised, ablation=ablation)
    }
    rows = []
    for name, figure in figures.items():
        if match := pattern.fullmatch(name):
            width, smec, label = match.groups()
            recall = figures[name.replace("ndcg@10", "recall@100")]
            smallest = share_text(figures[f"{name}.detectable"])
            cells = [share_text(figure, signed=True), interval_text(figure, signed=True), smallest]
            labels = "no" if smec.endswith(UNSUPERVISED) else "yes"
            rows.append(
                [
                    titles[label],
                    labels,
                    width,
                    *cells,
                    share_text(recall, signed=True),
                    interval_text(recall, signed=True),
                ]
            )
    header = ["SMEC minus", "labels", "width", "nDCG@10", "95 %", "smallest detectable", "Recall@100", "95 %"]
    return Table(f"{dataset}: differences on the same queries", header, rows)


def chosen_table(dataset: str, report: Report) -> Table:
    """What was chosen for every method, and what choice and all seeds took."""
    figures, rows = _named(report), []
    for label, choice in sorted(report.settings["chosen"].get(dataset, {}).items()):
        text = ", ".join(f"{name} {value}" for name, value in choice.items()) or "nothing to choose"
        rows.append([label, text, f"{figures[f'smec.{dataset}.{label}.cpu_minutes'].value:.2f}"])
    return Table(f"{dataset}: chosen on train queries", ["method", "chosen", "CPU minutes"], rows)


_KINDS: Final[Mapping[str, Callable[[str, Report], Table]]] = {
    "": lambda dataset, report: accuracy_table(dataset, report, unsupervised=False),
    "unsupervised": lambda dataset, report: accuracy_table(dataset, report, unsupervised=True),
    "ablation": lambda dataset, report: accuracy_table(dataset, report, unsupervised=False, ablation=True),
    "ablation-unsupervised": lambda dataset, report: accuracy_table(dataset, report, unsupervised=True, ablation=True),
    "differences": differences_table,
    "chosen": chosen_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest.partition("-")[2] in _KINDS


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `smec-DATASET` or `smec-DATASET-KIND`."""
    dataset, _, kind = rest.partition("-")
    return _KINDS[kind](dataset, report)


def smec_overview(report: Report) -> list[RichTable]:
    """The tables that a terminal shows after `windfire bench smec`."""
    tables = [build(dataset, report) for dataset in report.settings["chosen"] for build in _KINDS.values()]
    return [table.rich() for table in tables if table.rows]


def _named(report: Report) -> Named:
    return {figure.name: figure for figure in report.figures}


def _widths(dataset: str, figures: Named) -> list[int]:
    pattern = re.compile(rf"smec\.{dataset}\.d(\d+)\.(?:{REFERENCE}|{FULL})\.ndcg@10")
    return sorted((int(match[1]) for name in figures if (match := pattern.fullmatch(name))), reverse=True)


def _labels(report: Report, *, unsupervised: bool, ablation: bool = False) -> Sequence[tuple[str, str]]:
    """Names in the figures and titles; the joint method and SMEC stand in the tables of parts, too."""
    found = []
    for name in report.settings["order"]:
        method = report.settings["methods"][name]
        if bool(method["ablation"]) != ablation and not (ablation and name in (REFERENCE, "mrl")):
            continue
        if method["kind"] in UNTRAINED:
            found.append((name, method["title"] if unsupervised else f"{method['title']}, no labels"))
        else:
            found.append((name + UNSUPERVISED if unsupervised else name, method["title"]))
    return found
