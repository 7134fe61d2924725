"""windfire import-model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from recsys.imported.importer import ImportReport

# a group takes no options after its arguments unless told to
app = typer.Typer(context_settings={"allow_interspersed_args": True})


class Family(StrEnum):
    """Whose form the model has."""

    MINIONEREC = "minionerec"
    OPENONEREC = "openonerec"
    HUGGINGFACE = "huggingface"


class Precision(StrEnum):
    """In which the weights are loaded."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@app.callback(invoke_without_command=True)
def command(
    family: Annotated[Family, typer.Argument(help="The form of its prompt.")],
    model: Annotated[Path, typer.Argument(help="Folder of the trained model; it stays where it is.")],
    sids: Annotated[Path, typer.Option(help="Item id to semantic ID: .index.json, .json.gz or .parquet.")],
    data: Annotated[Path, typer.Option(help="Work directory of `windfire offline run`, for catalogue and users.")],
    out: Annotated[Path, typer.Option(help="Run directory; OUT/work gets the data with the model's semantic IDs.")],
    template: Annotated[Path | None, typer.Option(help="YAML over the family's prompt.")] = None,
    max_history: Annotated[int | None, typer.Option(min=1, help="Newest items that a prompt holds.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the loaded weights.")] = Precision.FLOAT32,
) -> None:
    """Bring in a generator that was trained elsewhere: checked, and served by `beam` as it is."""
    from recsys.imported.importer import import_model

    report = import_model(
        family.value,
        model,
        sids=sids,
        work=data,
        out=out,
        template=template,
        max_history=max_history,
        precision=precision.value,
    )
    _show(report, out)


def _show(report: ImportReport, out: Path) -> None:
    external, kept = report.external, report.kept
    sizes = " x ".join(str(len(level)) for level in external.code_tokens)
    spare = report.sids - kept.items
    weights = sum(entry.bytes for entry in external.files.values()) / 1e6
    typer.echo(f"model: {report.model_type}, {weights:,.1f} MB stay in {external.path}, {external.precision}")
    typer.echo(f"licence: {external.licence}")
    typer.echo(f"items: {kept.items:,} with a semantic ID ({sizes} codes), {kept.dropped:,} of the catalogue without")
    typer.echo(f"SID file: {report.sids:,} items, {spare:,} not in the catalogue; {report.shared:,} share their SID")
    typer.echo(f"events: {kept.events:,} kept, {kept.dropped_events:,} of items without a semantic ID left out")
    typer.echo(f"prompt: {report.prompt_tokens} tokens, {report.item_tokens} per item")
    typer.echo(f"largest difference to the model by itself: {report.difference:.2g} (log-probability)")
    typer.echo(f"→ {out}; next: windfire train draft-head --run {out} --data {out / 'work'} --out RUN")
