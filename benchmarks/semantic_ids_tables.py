"""Tables of `windfire bench semantic-ids`: the marks are `semantic-ids-` and one of `TABLES`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from benchmarks.table import ABSENT, Table, interval_text, share_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.table import Table as RichTable

    from benchmarks.figures import Figure, Report

    Named = Mapping[str, Figure]

_RETRAINED: Final = ("early", "cold", "warm")
_REPORTED: Final = ("evenness", "purity", "kept", "unexplained")


def codebooks_table(figures: Named) -> Table:
    """Codebook sizes: the softmax over the children beside that over the whole codebook."""
    rows = []
    for dataset in _datasets(figures, r"[\w]+\.codebook\d+"):
        stem = f"quality.{dataset}"
        density = [f"{figures[f'sids.{dataset}.level{level}.density'].value:.3f}" for level in (2, 3)]
        cells = [_share(figures, f"{stem}.{method}.ndcg@10") for method in ("children", "plain")]
        gain = _gain(figures, f"{stem}.plain.ndcg@10.minus.children")
        rows.append([dataset.partition("codebook")[2], *density, *cells, gain])
    header = ["T", "density, level 2", "level 3", "children", "whole codebook", "whole minus children"]
    return Table("Beauty, leave-one-out: NDCG@10 by codebook size, history masked", header, rows)


def tokenizers_table(figures: Named) -> Table:
    """Every tokenizer end to end."""
    rows = []
    for dataset in _datasets(figures, r"\w+(\.\w+)?", but=_RETRAINED):
        stem = f"quality.{dataset}.nezha"
        if f"{stem}.ndcg@10" in figures:
            cells = [_share(figures, f"{stem}.{metric}") for metric in ("ndcg@10", "recall@10", "recall@50")]
            gains = [_gain(figures, f"{stem}.{metric}.minus.default") for metric in ("ndcg@10", "recall@10")]
            detectable = _share(figures, f"{stem}.ndcg@10.detectable.default")
            rows.append([dataset.partition(".")[0], _variant(dataset), *cells, *gains, detectable])
    header = [
        "log", "semantic IDs", "NDCG@10", "Recall@10", "Recall@50", "NDCG@10 minus default", "Recall@10 minus default",
        "detectable NDCG@10",
    ]  # fmt: skip
    return Table("One recipe under other semantic IDs, history masked", header, rows)


def reports_table(figures: Named) -> Table:
    """What is measured of semantic IDs without a model."""
    rows = []
    for dataset in _datasets(figures, r"(beauty_time|scientific)(\.\w+)?", but=_RETRAINED):
        stem = f"sids.{dataset}"
        found = [figures.get(f"{stem}.level{level}.{what}") for what in _REPORTED for level in (1, 2)]
        cells = [ABSENT if figure is None else f"{figure.value:.3f}" for figure in found]
        rows.append([dataset.partition(".")[0], _variant(dataset), f"{figures[f'{stem}.colliding'].value:.0f}", *cells])
    header = [
        "log", "semantic IDs", "colliding", "even use, level 1", "level 2", "purity, level 1", "level 2",
        "neighbours, level 1", "level 2", "unexplained, level 1", "level 2",
    ]  # fmt: skip
    return Table("Semantic IDs, judged by the fused vectors", header, rows)


def retraining_table(figures: Named) -> Table:
    """A tokenizer of today, begun anew or with the earlier one."""
    rows = []
    for dataset in _datasets(figures, r"beauty_time\.(cold|warm)"):
        changed = [_share(figures, f"sids.{dataset}.changed_prefix{level}") for level in (1, 2, 3)]
        stem = f"quality.{dataset}.nezha"
        cells = [_share(figures, f"{stem}.{metric}") for metric in ("ndcg@10", "recall@10")]
        rows.append([_variant(dataset), *changed, *cells, _gain(figures, f"{stem}.ndcg@10.minus.default")])
    header = [
        "tokenizer begun", "first code changed", "first two", "all three", "NDCG@10", "Recall@10", "NDCG@10 minus cold",
    ]  # fmt: skip
    return Table("Beauty by time: retrained when a third more of the log is there", header, rows)


TABLES: Final[dict[str, Callable[[Named], Table]]] = {
    "codebooks": codebooks_table,
    "tokenizers": tokenizers_table,
    "reports": reports_table,
    "retraining": retraining_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `semantic-ids-KIND`."""
    return TABLES[rest]({figure.name: figure for figure in report.figures})


def semantic_ids_overview(report: Report) -> list[RichTable]:
    """The tables that a terminal shows after `windfire bench semantic-ids`."""
    named = {figure.name: figure for figure in report.figures}
    tables = [build(named) for build in TABLES.values()]
    return [table.rich() for table in tables if table.rows]


def _datasets(figures: Named, pattern: str, but: tuple[str, ...] = ()) -> Iterator[str]:
    """Data sets that were reported on, in their order."""
    form = re.compile(rf"sids\.({pattern})\.items")
    for name in figures:
        if (match := form.fullmatch(name)) and _variant(match[1]) not in but:
            yield match[1]


def _variant(dataset: str) -> str:
    return dataset.partition(".")[2] or "default"


def _share(figures: Named, name: str) -> str:
    return share_text(figures[name]) if name in figures else ABSENT


def _gain(figures: Named, name: str) -> str:
    if name not in figures:
        return ABSENT
    return f"{share_text(figures[name], signed=True)} ({interval_text(figures[name], signed=True)})"
