"""windfire engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path | None, typer.Option(help="Directory of published bundles.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Directory that remembers which bundle files were verified.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="Where to listen: the path of a Unix socket.")] = None,
) -> None:
    """Decode for one or several `windfire serve`, in a process of its own; docs/operating.md says when that pays."""
    from serving.remote.runner import run_engine
    from serving.settings import read_settings

    settings = read_settings(registry=registry, state=state, engine_socket=socket)
    if settings.engine_socket is None:
        raise ConfigError(
            "no socket was named", field="WINDFIRE_ENGINE_SOCKET", value="", remedy="give --socket, or set the variable"
        )
    run_engine(settings, settings.engine_socket)
