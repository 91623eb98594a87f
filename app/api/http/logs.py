"""The log, on stderr: JSON, an object a line, for machines; or text, for people at a terminal."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Final, Literal, TextIO, TypeAlias

LogFormat: TypeAlias = Literal["auto", "json", "text"]
FIELDS: Final = "fields"
TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def fields(values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The `extra` of a record that has these fields beside its message; None is left out."""
    return {FIELDS: {name: value for name, value in values.items() if value is not None}}


def inform(log: logging.Logger, message: str, values: Mapping[str, Any]) -> None:
    """Log `message` with these fields at INFO, without the search for the line that calls: no form of ours tells it."""
    if log.isEnabledFor(logging.INFO):
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, message, (), None, extra=fields(values)))


class Json(logging.Formatter):
    """`time` (UTC, RFC 3339), `level`, `logger`, `message`, the record's fields, and `exception` if there was one."""

    def format(self, record: logging.LogRecord) -> str:
        """One object in one line, in ASCII."""
        told = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class Text(logging.Formatter):
    """A line, its fields after the message."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """The line without a traceback."""
        pairs = [f"{name}={value}" for name, value in getattr(record, FIELDS, {}).items()]
        return " ".join([super().formatMessage(record), *pairs])


@lru_cache(maxsize=1)  # of a busy second there are thousands
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class Gathering(logging.StreamHandler[TextIO]):
    """Writes together what an event loop logs in one of its turns: to write costs more than the line itself.

    Warnings, and what is logged where no loop runs, are written at once, after what was gathered.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._called: asyncio.AbstractEventLoop | None = None  # it is about to write them

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or keep it until the loop has done what it has to do now."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = _running_loop() if record.levelno < logging.WARNING else None
            if loop is None:
                self.flush()
            elif self._called is not loop:
                self._called = loop
                loop.call_soon(self._write, record)
        except Exception:  # noqa: BLE001  # as all of logging's handlers: whoever logs is not to fail by it
            self.handleError(record)

    def flush(self) -> None:
        """Write what was gathered."""
        with self.lock or nullcontext():
            lines, self._lines, self._called = self._lines, [], None
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
    """What writes to `stream`; `auto` is text on a terminal and JSON elsewhere."""
    chosen = Gathering(stream)
    as_text = form == "text" or (form == "auto" and stream.isatty())
    chosen.setFormatter(Text() if as_text else Json())
    return chosen
