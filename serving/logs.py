"""Log lines as JSON on standard error; set up by the command, never by the library."""

from __future__ import annotations

import logging
import os
import sys

import structlog

from serving.settings import LogLevel


def configure_logs(level: LogLevel, *, worker: int | None = None) -> None:
    """Send structlog's and the standard library's lines, uvicorn's among them, through one JSON renderer.

    Args:
        level: the least severe that is written.
        worker: whose number every line carries.
    """
    # libraries that load a text encoder would draw bars between the lines
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *([] if worker is None else [_Numbered(worker)]),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level.value),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.value.upper(), force=True)


class _Numbered:
    """Adds the worker's number, in every thread."""

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def __call__(
        self, _: structlog.types.WrappedLogger, __: str, line: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        line["worker"] = self._worker
        return line
