"""Logs: events with fields, one line each, on stderr; for people on a terminal, JSON for machines."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog


def configure_logs(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging, which other packages use, to write alike.

    A terminal gets text, in colours unless NO_COLOR is set or it knows none; anything else, systemd's journal included, gets JSON.
    """
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor]
    if stream.isatty() and "JOURNAL_STREAM" not in os.environ:
        # Plain tracebacks: the default, with rich installed, prints local variables, and a local may be a secret.
        plain = structlog.dev.plain_traceback
        colors = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        render = [_printable, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def _printable(logger: object, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Text from outside, a device's id say, must not steer a terminal."""
    return {
        key: value if not isinstance(value, str) or key == "exception" else printable(value)
        for key, value in fields.items()
    }


def printable(text: str) -> str:
    """Text with every character that no terminal should see in its escaped form."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
