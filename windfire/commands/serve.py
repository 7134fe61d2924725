"""windfire serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from recsys.errors import ConfigError

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path | None, typer.Option(help="Directory of published bundles.")] = None,
    state: Annotated[Path | None, typer.Option(help="Directory for event log, exposure log and histories.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Answer over HTTP; config/windfire.reference.env explains the other settings."""
    from serving.runner import run
    from serving.settings import Settings

    given: dict[str, Any] = {"registry": registry, "state": state, "host": host, "port": port}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(("WINDFIRE", *(str(part) for part in first["loc"]))).upper()
        raise ConfigError(
            first["msg"], field=name, value=first["input"], remedy="see config/windfire.reference.env"
        ) from error
    run(settings)
