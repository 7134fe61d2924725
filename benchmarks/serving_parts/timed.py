"""`windfire serve` that knows its own CPU time by stages, and a bare echo beside it, on the same uvicorn.

`python -m benchmarks.serving_parts.timed serve ...` or `... echo --port P`. On SIGUSR1 it writes its times to the
file that WINDFIRE_BENCH_TIMES names. WINDFIRE_BENCH_STAGES=1 times every stage, otherwise the decoder alone, because
reading the clock takes time, too.

A stage's time is that of its own thread while nothing inside it is another stage. What waits costs nothing; what the
event loop does while a coroutine waits counts for the coroutine, so ask one request after the other.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TIMES: Final = "WINDFIRE_BENCH_TIMES"
STAGES: Final = "WINDFIRE_BENCH_STAGES"
DECODE: Final = "decode"
# (module, class or "", function or method, stage); what is not there is part of the stage around it
_SEAMS: Final = (
    ("serving.errors", "", "json_response", "json"),
    ("serving.histories", "Histories", "of", "history"),
    ("serving.ladder.ladder", "Ladder", "recommend", "ladder"),
    ("serving.engine", "InProcessEngine", "recommend", "queue"),
    ("serving.stages", "BundleRecommender", "recommend", "filters"),
    ("serving.recheck", "SlateCheck", "rows", "recheck"),
    ("serving.journal", "ExposureWriter", "write", "exposures"),
    ("serving.middleware", "Observe", "__call__", "http"),
)


class Stages:
    """CPU time by stage, over all threads.

    Attributes:
        calls: of each stage.
        nanoseconds: of each stage, without those inside it.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.nanoseconds: dict[str, int] = defaultdict(int)
        self._thread = threading.local()

    def enter(self, stage: str) -> None:
        """A stage begins in this thread."""
        self._note()
        self._thread.stack.append(stage)
        self.calls[stage] += 1

    def leave(self) -> None:
        """The innermost stage of this thread ends."""
        self._note()
        self._thread.stack.pop()

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """A function or coroutine function that is a stage."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaiting(*args: Any, **kwargs: Any) -> Any:
                self.enter(stage)
                try:
                    return await function(*args, **kwargs)
                finally:
                    self.leave()

            return awaiting

        @functools.wraps(function)
        def calling(*args: Any, **kwargs: Any) -> Any:
            self.enter(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return calling

    def _note(self) -> None:
        """Give the time since the last change of this thread to its innermost stage."""
        now, stack = time.thread_time_ns(), getattr(self._thread, "stack", None)
        if stack is None:
            stack = self._thread.stack = []
        elif stack:
            self.nanoseconds[stack[-1]] += now - self._thread.since
        self._thread.since = now


def install(stages: Stages, *, every: bool) -> None:
    """Put timed functions in the place of the server's, before anything takes them by name.

    Args:
        stages: notes the times.
        every: all stages; else the decoder alone.
    """
    import recsys.bundle
    import recsys.bundle.loading

    plain = recsys.bundle.loading.load_decoder

    def load_decoder(*args: Any, **kwargs: Any) -> Any:
        decoder: Any = plain(*args, **kwargs)
        decoder.decode = stages.timed(decoder.decode, DECODE)
        return decoder

    recsys.bundle.load_decoder = recsys.bundle.loading.load_decoder = load_decoder
    if not every:
        return
    for module, kind, name, stage in _SEAMS:
        loaded = import_module(module)
        owner = getattr(loaded, kind, None) if kind else loaded
        if hasattr(owner, name):
            setattr(owner, name, stages.timed(getattr(owner, name), stage))
    for route in import_module("serving.routes").router.routes:
        if route.path == "/v1/recommend":
            route.endpoint = stages.timed(route.endpoint, "route")


def answer_signals(stages: Stages, path: Path) -> None:
    """On SIGUSR1 write the times that were noted so far, and the process's, whole or not at all."""

    def write(*_: object) -> None:
        told = {
            "process": time.process_time_ns(),
            "nanoseconds": dict(stages.nanoseconds),
            "calls": dict(stages.calls),
        }
        staged = path.with_suffix(".part")
        staged.write_text(json.dumps(told))
        staged.replace(path)

    signal.signal(signal.SIGUSR1, write)


def run_echo(port: int) -> None:
    """Serve an application that answers a JSON body with itself, on the server's own uvicorn."""
    from datetime import timedelta

    import uvicorn
    from fastapi import Body, FastAPI
    from fastapi.responses import Response

    from serving.runner import uvicorn_config
    from serving.settings import Settings

    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> Response:
        return Response()

    @app.post("/v1/recommend")
    async def echo(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - FastAPI's own plainest form
        return body

    config = uvicorn_config(Settings(port=port, drain_timeout=timedelta(seconds=1)))
    config.app = app
    uvicorn.Server(config).run()


def main() -> None:
    """Serve with timed stages, or echo."""
    stages = Stages()
    answer_signals(stages, Path(os.environ[TIMES]))
    if sys.argv[1] == "echo":
        run_echo(int(sys.argv[sys.argv.index("--port") + 1]))
        return
    install(stages, every=os.environ.get(STAGES) == "1")
    from windfire.cli import main as windfire

    windfire()


if __name__ == "__main__":
    main()
