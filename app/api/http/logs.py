"""Log handlers and formats: JSON lines for machines, text for a terminal."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Final, Literal, TextIO, TypeAlias

from pydantic_core import to_json

LogFormat: TypeAlias = Literal["auto", "json", "text"]
FIELDS: Final = "fields"
TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def fields(values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the `extra` of a log record with these fields; fields that are None are left out."""
    return {FIELDS: {name: value for name, value in values.items() if value is not None}}


def inform(log: logging.Logger, message: str, values: Mapping[str, Any]) -> None:
    """Log `message` with these fields at INFO, without looking up the calling line, which neither format shows."""
    if log.isEnabledFor(logging.INFO):
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, (), None, extra=fields(values)))


class Json(logging.Formatter):
    """`time` (UTC, RFC 3339), `level`, `logger`, `message`, the record's fields, and `exception` if there was one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object in one line, in ASCII."""
        entry = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return to_json(entry, ensure_ascii=True).decode()


class Text(logging.Formatter):
    """A line, its fields after the message."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """Return the line without a traceback."""
        pairs = [f"{name}={value}" for name, value in getattr(record, FIELDS, {}).items()]
        return " ".join([super().formatMessage(record), *pairs])


@lru_cache(maxsize=1)  # a busy second has thousands of lines
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class BufferedHandler(logging.StreamHandler[TextIO]):
    """Write all lines of one event-loop iteration with one call: a write costs more than formatting a line.

    Warnings, and records logged outside an event loop, are written at once, after the buffered lines.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._scheduled: asyncio.AbstractEventLoop | None = None  # loop that will write the buffered lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or buffer it until the end of the event loop's iteration."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = _running_loop() if record.levelno < logging.WARNING else None
            if loop is None:
                self.flush()
            elif self._scheduled is not loop:
                self._scheduled = loop
                loop.call_soon(self._write, record)
        except Exception:  # noqa: BLE001  # as in logging's own handlers: a failing log must not fail its caller
            self.handleError(record)

    def flush(self) -> None:
        """Write the buffered lines."""
        with self.lock or nullcontext():
            lines, self._lines, self._scheduled = self._lines, [], None
            self.stream.write("".join(lines))
            super().flush()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self.flush()
        except Exception:  # noqa: BLE001
            self.handleError(record)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def handler(form: LogFormat, stream: TextIO) -> logging.Handler:
    """Return a handler that writes to `stream`; `auto` is text on a terminal and JSON elsewhere."""
    chosen = BufferedHandler(stream)
    as_text = form == "text" or (form == "auto" and stream.isatty())
    chosen.setFormatter(Text() if as_text else Json())
    return chosen
