"""Logs of a process: lines for people, or one JSON object a line for programs that collect them.

A JSON line has ``time`` (UTC), ``level``, ``logger``, ``message``, ``component`` and ``name`` of the process,
``session`` and ``config`` where the process is at one, ``exception`` where there is a traceback, and whatever
a library adds as ``extra``. Loggers of libraries write the same way.
"""

from __future__ import annotations

import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["human", "json"]
Level = Literal["debug", "info", "warning", "error"]

HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TALKATIVE = ("httpx", "httpcore", "h5py", "numba", "matplotlib", "urllib3")  # below warning, that is

_about: dict[str, str] = {}


def configure(form: Format, level: Level, *, component: str, name: str) -> None:
    """Have this process's logs written to its standard error, warnings and unhandled exceptions too."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form, component=component, name=name))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in TALKATIVE:
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(True)
    sys.excepthook = _unhandled
    threading.excepthook = lambda failed: _unhandled(
        failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
    )


def formatter(form: Format, *, component: str, name: str) -> logging.Formatter:
    """How a record becomes a line."""
    return _JsonLines(component, name) if form == "json" else logging.Formatter(HUMAN)


def about(**fields: str) -> None:
    """What the process is at from now on: ``session`` and ``config``; the lines that follow say so."""
    _about.update(fields)


def last_word(line: str) -> None:
    """Say in one line of what the process ends."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, _JsonLines) for handler in handlers):
        logging.getLogger("cryoflux").critical(line)
    else:
        print(line, file=sys.stderr)


class _JsonLines(JsonFormatter):
    def __init__(self, component: str, name: str) -> None:
        super().__init__(json_ensure_ascii=False)
        self._who = {"component": component, "name": name}

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """All fields of a line, in this order."""
        own: dict[str, Any] = {}
        super().add_fields(own, record, message_dict)  # what was given as extra, and a traceback
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["message"] = record.getMessage()
        log_data.update(self._who)
        log_data.update(_about)
        traceback = own.pop("exc_info", None)
        if traceback:
            log_data["exception"] = traceback
        for field, value in own.items():
            log_data.setdefault(field, value)


def _unhandled(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger("cryoflux").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
