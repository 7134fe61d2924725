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

    The logs of all workers are looked at. A running server does it by itself every hour, and has the logs locked.
    """
    import time
    from contextlib import closing

    from recsys.event_log import SegmentLog
    from serving.security.retention import remove_old
    from serving.settings import read_settings
    from serving.workers.folders import states_with_logs

    settings = read_settings(state=state)
    removed = []
    for folder in states_with_logs(settings.state):
        with closing(SegmentLog(folder / "events")) as events, closing(SegmentLog(folder / "exposures")) as exposures:
            own = settings.model_copy(update={"state": folder})
            removed.append(remove_old(own, events, exposures, time.time_ns() // 1_000))
    of_events, of_exposures = (sum(counts) for counts in zip(*removed, strict=True))
    typer.echo(f"segments removed: {of_events} of events, {of_exposures} of exposures")
