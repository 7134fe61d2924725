"""Tables of README.md, docs/*.md and deploy/README.md, made from docs/figures/*.json: `python -m benchmarks.tables`.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; what is between the marks is replaced. Names:
`quality-DATASET`, `quality-DATASET-lists`, `quality-DATASET-differences`, `quality-DATASET-ablations`, `decoding`,
`decoding-engines`, and `decoding-PART`, `decoding-PART-KIND` of the parts in `benchmarks.decoding_parts`; those of the
modules in `_OTHERS`.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import FIGURES, ROOT, Figure, Report
from benchmarks.table import ABSENT, Table, interval_text, share_text
from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table as RichTable

_MARKED: Final = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
_ENGINES: Final = ("_torch_bf16", "_onnx", "_onnx_int8")  # endings of methods whose forwards another engine computes

Named = dict[str, Figure]


def quality_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """Accuracy and cost of every method that is no ablation."""
    header = [
        "method", "Recall@5", "NDCG@5", "Recall@10", "NDCG@10", "95 %",
        "Recall@10 unmasked", "NDCG@10 unmasked", "CPU minutes",
    ]  # fmt: skip
    rows = []
    for method in _measured(dataset, figures, methods):
        if _is_ablation(methods[method]):
            continue
        name = f"quality.{dataset}.{method}"
        masked = [figures[f"{name}.masked.{metric}"] for metric in ("recall@5", "ndcg@5", "recall@10", "ndcg@10")]
        plain = [figures[f"{name}.unmasked.{metric}"] for metric in ("recall@10", "ndcg@10")]
        cells = [*map(share_text, masked), interval_text(masked[-1]), *map(share_text, plain)]
        rows.append([methods[method]["title"], *cells, f"{figures[f'{name}.cpu_minutes'].value:.1f}"])
    return Table(f"{dataset}: test, full catalogue, history masked unless said", header, rows)


def lists_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """What is recommended, hit or not, and to whom it is right."""
    columns = {
        "coverage@10": "coverage@10", "Gini@10": "gini@10", "mean popularity@10": "popularity@10",
        "Recall@10 head": "recall_head@10", "torso": "recall_torso@10", "tail": "recall_tail@10",
        "invalid@50": "invalid@50",
    }  # fmt: skip
    rows = []
    for method in _measured(dataset, figures, methods):
        if not _is_ablation(methods[method]):
            found = [figures[f"quality.{dataset}.{method}.masked.{metric}"] for metric in columns.values()]
            cells = [f"{figure.value:.1f}" if figure.unit == "interactions" else share_text(figure) for figure in found]
            rows.append([methods[method]["title"], *cells])
    return Table(f"{dataset}: what is recommended, history masked", ["method", *columns], rows)


def differences_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """Paired differences between methods."""
    rows = [
        [methods[method]["title"], methods[other]["title"], *_both(dataset, method, other, figures)]
        for method in _measured(dataset, figures, methods)
        for other in methods[method]["against"]
        if not _is_ablation(methods[method]) and f"quality.{dataset}.{method}.masked.ndcg@10.minus.{other}" in figures
    ]
    header = ["method", "minus", "NDCG@10", "95 %", "Recall@10", "95 %"]
    return Table(f"{dataset}: differences on the same users, history masked", header, rows)


def ablations_table(dataset: str, figures: Named, methods: Mapping[str, Any]) -> Table:
    """What single changes cost."""
    rows = []
    for method in _measured(dataset, figures, methods):
        base = methods[method]["change_of"]
        if base and f"quality.{dataset}.{base}.cpu_minutes" in figures:
            own = share_text(figures[f"quality.{dataset}.{method}.masked.ndcg@10"])
            minutes = f"{figures[f'quality.{dataset}.{method}.cpu_minutes'].value:.1f}"
            rows.append(
                [methods[method]["title"], methods[base]["title"], own, *_both(dataset, method, base, figures), minutes]
            )
    header = ["change", "of", "NDCG@10", "difference", "95 %", "Recall@10 difference", "95 %", "CPU minutes"]
    return Table(f"{dataset}: single changes, history masked", header, rows)


def decoding_table(figures: Named) -> Table:
    """Every method with torch's forwards."""
    found = [place for place in _timed(figures) if not place[2].endswith(_ENGINES)]
    return _decoding(found, figures, "median ms, in brackets over prefill")


def engines_table(figures: Named) -> Table:
    """The engines beside each other, on one thread, with the exact beam."""
    names = [f"{name}{ending}" for ending in ("", *_ENGINES) for name in ("prefill", "nezha", "flat")]
    found = [place for place in _timed(figures) if place[2] in {*names, "beam"} and "threads" not in place[0]]
    found.sort(key=lambda place: names.index(place[2]) if place[2] in names else len(names))
    return _decoding(found, figures, "median ms on one thread, in brackets over the same engine's prefill")


def _timed(figures: Named) -> list[tuple[str, str, str]]:
    """Backbone, beam and method of every time."""
    pattern = re.compile(r"decoding\.(\w+)\.beam(\d+)\.(\w+)\.ms")
    return [(match[1], match[2], match[3]) for name in figures if (match := pattern.fullmatch(name))]


def _decoding(found: Sequence[tuple[str, str, str]], figures: Named, title: str) -> Table:
    places = list(dict.fromkeys(place[:2] for place in found))
    names = list(dict.fromkeys(place[2] for place in found))
    rows = []
    for backbone, beam in places:
        cells = []
        for name in names:
            stem = f"decoding.{backbone}.beam{beam}.{name}"
            time, ratio = figures.get(f"{stem}.ms"), figures.get(f"{stem}.over_prefill")
            text = ABSENT if time is None else f"{time.value:.3g}"
            cells.append(text if ratio is None else f"{text} ({ratio.value:.2f})")
        rows.append([f"{backbone}, beam {beam}", *cells])
    return Table(title, ["backbone", *names], rows)


_OTHERS: Final[dict[str, tuple[str, str, str]]] = {
    "vllm": ("vllm", "vllm.json", "benchmarks.vllm_tables"),
    "import": ("import-model --out DIR", "import_model.json", "benchmarks.import_tables"),
    "rere-speed": ("rere-speed --run RUN --data WORK", "rere_speed.json", "benchmarks.rere_speed_tables"),
    "rere": ("rere", "rere.json", "benchmarks.rere_tables"),
    "features": ("features --registry REGISTRY", "features.json", "benchmarks.features_tables"),
    "retrieval": ("retrieval", "retrieval.json", "benchmarks.retrieval"),
    "smec": ("smec", "smec.json", "benchmarks.smec_tables"),
    "cold": ("cold", "cold.json", "benchmarks.cold_tables"),
    "sizes": ("decoding --part crossover", "decoding_crossover.json", "benchmarks.sizing"),
    "serving": ("serving", "serving.json", "benchmarks.serving_tables"),
    "semantic-ids": ("semantic-ids", "semantic_ids.json", "benchmarks.semantic_ids_tables"),
}
"""How a mark begins: the command behind its figures, their file, and the module that knows which ends a mark may have
(`is_mark`) and makes the table of the end and the report (`marked_table`)."""

_QUALITY: Final[dict[str, Callable[[str, Named, Mapping[str, Any]], Table]]] = {
    "": quality_table,
    "lists": lists_table,
    "differences": differences_table,
    "ablations": ablations_table,
}


def quality_overview(report: Report) -> list[RichTable]:
    """The tables that a terminal shows after `windfire bench quality`."""
    named = {figure.name: figure for figure in report.figures}
    methods, datasets = report.settings["methods"], report.settings["datasets"]
    tables = [build(dataset, named, methods) for dataset in datasets for build in _QUALITY.values()]
    return [table.rich() for table in tables if table.rows]


def render(name: str, folder: Path = FIGURES) -> str:
    """The Markdown of one table.

    Args:
        name: as in the mark.
        folder: of the figures.

    Raises:
        DataError: no table has this name, or its figures hold nothing for it.
    """
    bench, _, rest = name.partition("-")
    if bench == "decoding":
        return _decoding_part(rest, folder)
    for mark, (command, file, module) in _OTHERS.items():
        if name == mark or name.startswith(f"{mark}-"):
            source, rest = import_module(module), name[len(mark) + 1 :]
            if not source.is_mark(rest):
                raise _no_table(name)
            report = _report(folder, file)
            return _unmeasured(command, file) if report is None else _filled(source.marked_table(rest, report), name)
    dataset, _, kind = rest.partition("-")
    if bench != "quality" or kind not in _QUALITY:
        raise _no_table(name)
    report = _report(folder, "quality.json")
    if report is None:
        return _unmeasured("quality", "quality.json")
    table = _QUALITY[kind](dataset, {figure.name: figure for figure in report.figures}, report.settings["methods"])
    return _filled(table, name)


def _decoding_part(rest: str, folder: Path) -> str:
    """`engines` is a kind of the default part; every other word before the first dash is a part."""
    from benchmarks import decoding_parts as parts  # its modules import this one

    first, _, behind = rest.partition("-")
    part, kind = (first, behind) if first in parts.PARTS else (parts.DEFAULT, rest)
    tables = parts.load(part).TABLES
    if kind not in tables:
        raise _no_table(f"decoding-{rest}")
    file = parts.figures_file(part)
    report = _report(folder, file)
    if report is None:
        return _unmeasured("decoding" if part == parts.DEFAULT else f"decoding --part {part}", file)
    return _filled(tables[kind]({figure.name: figure for figure in report.figures}), f"decoding-{rest}")


def _report(folder: Path, file: str) -> Report | None:
    path = folder / file
    return Report.load(path) if path.exists() else None


def _unmeasured(command: str, file: str) -> str:
    return f"*Not measured yet: `windfire bench {command} --json docs/figures/{file}`.*\n"


def _filled(table: Table, name: str) -> str:
    if not table.rows:
        raise DataError("the figures hold nothing for this table", field="table", value=name)
    return table.markdown()


def _no_table(name: str) -> DataError:
    return DataError("no table has this name", field="table", value=name, remedy="see benchmarks/tables.py")


def rewritten(text: str, folder: Path = FIGURES) -> str:
    """A page with every marked table made anew."""
    return _MARKED.sub(lambda match: match[1] + render(match[2], folder) + match[3], text)


def pages(root: Path = ROOT) -> Iterator[Path]:
    """README.md, deploy/README.md and docs/*.md."""
    for readme in (root / "README.md", root / "deploy" / "README.md"):
        if readme.exists():
            yield readme
    yield from sorted((root / "docs").glob("*.md"))


def main() -> int:
    """Rewrite the pages that differ, and name them."""
    for page in pages():
        old = page.read_text()
        new = rewritten(old)
        if new != old:
            page.write_text(new)
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")
    return 0


def _measured(dataset: str, figures: Named, methods: Mapping[str, Any]) -> list[str]:
    return [method for method in methods if f"quality.{dataset}.{method}.masked.ndcg@10" in figures]


def _is_ablation(method: Mapping[str, Any]) -> bool:
    return bool(method["change_of"])


def _both(dataset: str, method: str, other: str, figures: Named) -> list[str]:
    names = (f"quality.{dataset}.{method}.masked.{metric}@10.minus.{other}" for metric in ("ndcg", "recall"))
    return [
        cell
        for name in names
        for cell in (share_text(figures[name], signed=True), interval_text(figures[name], signed=True))
    ]


if __name__ == "__main__":
    sys.exit(main())
