"""Tables of docs/cold_start.md: `cold` (every source), `cold-exposure`, `cold-scores`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.table import ABSENT, Table, interval_text, share_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.figures import Figure, Report

    Named = dict[str, Figure]

STEM: Final = "features.cold"
TITLES: Final = {
    "nezha": "`nezha`, cold prior",
    "retrieval": "retrieval, text and guessed collaboration",
    "both": "both, merged",
    "content_only": "retrieval, text only",
    "retrieval_plain": "retrieval, without the discount",
    "no_cold_handling": "`nezha` without cold handling",
    "nezha_even": "`nezha`, prior of one more child",
    "nezha_text_ids": "`nezha`, semantic IDs by text only",
    "nezha_no_history": "`nezha`, later items not read in histories",
}
_GROUPS: Final = {"later items": "", "histories with them": "history.", "all cases": "all."}


def recall_table(figures: Named) -> Table:
    """Recall of every source on the groups of cases."""
    header = ["source"]
    for group in _GROUPS:
        header += [f"Recall@50, {group}", "95 %"]
    rows = []
    for source in _measured(figures):
        cells = []
        for group in _GROUPS.values():
            figure = figures.get(f"{STEM}.{source}.{group}recall@50")
            cells += [ABSENT, ABSENT] if figure is None else [share_text(figure), interval_text(figure)]
        rows.append([TITLES[source], *cells])
    return Table("items that came after training, history masked", header, rows)


def exposure_table(figures: Named) -> Table:
    """How often later items are shown over how often they are wanted."""
    rows = []
    for source in _measured(figures):
        cells = []
        for cut in (10, 50):
            figure = figures.get(f"{STEM}.{source}.exposure@{cut}")
            cells += [ABSENT, ABSENT] if figure is None else [f"{figure.value:.2f}", _range(figure)]
        rows.append([TITLES[source], *cells])
    header = ["source", "exposure over share, first 10", "95 %", "first 50", "95 %"]
    return Table("exposure of later items over their share of the test events", header, rows)


def scores_table(figures: Named) -> Table:
    """What became of the scores of all other items."""
    compared = figures.get(f"{STEM}.scores.compared")
    if compared is None:
        return Table("", [], [])
    changed, largest = figures[f"{STEM}.scores.changed"], figures[f"{STEM}.scores.largest_change"]
    row = [compared.note, f"{compared.value:,.0f}", f"{changed.value:,.0f}", f"{largest.value:.3g}"]
    header = ["what was done", "scores compared", "whose bits changed", "largest change"]
    return Table("scores of all other items", header, [row])


TABLES: Final[dict[str, Callable[[Named], Table]]] = {
    "": recall_table,
    "exposure": exposure_table,
    "scores": scores_table,
}


def is_mark(rest: str) -> bool:
    """Whether a table has the mark that ends so."""
    return rest in TABLES


def marked_table(rest: str, report: Report) -> Table:
    """Of the mark `cold`, or `cold-` and the rest."""
    return TABLES[rest]({figure.name: figure for figure in report.figures})


def _measured(figures: Named) -> list[str]:
    return [source for source in TITLES if f"{STEM}.{source}.all.recall@50" in figures]


def _range(figure: Figure) -> str:
    return ABSENT if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"
