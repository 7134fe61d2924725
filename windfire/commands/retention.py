"""windfire retention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.callback(invoke_without_command=True)
def command(
    state: Annotated[Path | None, typer.Option(help="Directory with event log and exposure log.")] = None,
) -> None:
    """Remove segments of the logs that are older than WINDFIRE_EVENT_RETENTION and WINDFIRE_EXPOSURE_RETENTION.

    A running server does it by itself every hour, and has the logs locked.
    """
    import time
    from contextlib import closing

    from recsys.event_log import SegmentLog
    from serving.retention import remove_old
    from serving.settings import read_settings

    settings = read_settings(state=state)
    with (
        closing(SegmentLog(settings.state / "events")) as events,
        closing(SegmentLog(settings.state / "exposures")) as exposures,
    ):
        removed = remove_old(settings, events, exposures, time.time_ns() // 1_000)
    typer.echo(f"segments removed: {removed.events} of events, {removed.exposures} of exposures")
