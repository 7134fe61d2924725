"""windfire doctor."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.callback(invoke_without_command=True)
def command(
    *,
    work: Annotated[Path, typer.Option(help="Where work, registry and server state are to live.")] = Path("work"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port the server is to listen on.")] = 8080,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Say what is missing on this machine; exit status 1 when something that is needed is missing."""
    from windfire.health import Status, check_machine

    findings = check_machine(work, port)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            console.print(f"{finding.status:<5}", style=_COLOURS[finding.status], end="")
            console.print(f"{finding.name:<20} {finding.detail}", markup=False)
            if finding.remedy:
                console.print(f"{'':<25} remedy: {finding.remedy}", markup=False)
    if any(finding.status is Status.FAIL for finding in findings):
        raise typer.Exit(1)
