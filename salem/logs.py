"""Logging of every process, on standard error: lines for people, or one JSON object per line.

Knows structlog and the standard library's logging. Must not know who logs what. Callers keep the texts of
clients out of the log, and tracebacks show no values of variables.
"""

from __future__ import annotations

import logging
import sys

import structlog

from salem.settings import Settings

CHATTY = ("httpx", "alembic", "uvicorn.access")  # libraries that log each request or step


def configure_logging(settings: Settings) -> None:
    """Send the logs of structlog and of all libraries to standard error, as lines for people or as JSON."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(log_json=settings.log_json),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _rendering(*, log_json: bool) -> list[structlog.typing.Processor]:
    if log_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # plain tracebacks: rich ones print the values of variables, which may be texts of clients
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]
