"""windfire serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.settings import Settings

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    registry: Annotated[Path | None, typer.Option(help="Directory of published bundles.")] = None,
    state: Annotated[Path | None, typer.Option(help="Directory for event log, exposure log and histories.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; see docs/operating.md.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Imported tables: their users' events join the histories before the start.")
    ] = None,
) -> None:
    """Answer over HTTP; config/windfire.reference.env explains the other settings."""
    from serving.settings import read_settings
    from serving.workers.folders import check_workers

    settings = read_settings(registry=registry, state=state, host=host, port=port, workers=workers)
    check_workers(settings)
    if data is not None:
        _load_histories(settings, data)
    if settings.workers == 1:
        from serving.runner import run

        run(settings)
    else:
        from serving.workers.supervisor import run_workers

        run_workers(settings)


def _load_histories(settings: Settings, data: Path) -> None:
    """Merge the tables' events into the histories; doing it at every start changes nothing."""
    from contextlib import closing

    from feature_store.opening import open_store
    from feature_store.settings import read_feature_settings
    from feature_store.standard import USER_RECENT
    from feature_store.streaming import load_events
    from recsys.records import TablesManifest
    from serving.histories import history_address

    TablesManifest.load(data)
    with closing(open_store(history_address(settings), read_feature_settings().timeouts)) as store:
        load_events(store, USER_RECENT, data, settings.history_actions)
