"""The content and the format of the log."""

import asyncio
import io
import json
import logging
import sys
from typing import Any

import pytest

from app.api.http import logs
from app.api.http.logs import LogFormat
from tests.api.conftest import FakeServed, connect, service


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(message: str = "request", **values: Any) -> logging.LogRecord:
    made = logging.LogRecord("app.api", logging.INFO, "a.py", 1, message, (), None)
    made.__dict__.update(logs.fields(values))
    return made


def written(form: LogFormat, stream: io.StringIO, one: logging.LogRecord) -> str:
    logs.handler(form, stream).emit(one)
    return stream.getvalue()


class Counted(io.StringIO):
    """A stream that remembers what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        if text:
            self.written.append(text)
        return super().write(text)


@pytest.mark.anyio
async def test_what_a_loop_logs_in_one_of_its_turns_is_written_together() -> None:
    stream = Counted()
    handler = logs.handler("text", stream)
    for message in ("one", "two"):
        handler.handle(record(message))
    assert stream.written == []
    await asyncio.sleep(0)
    (together,) = stream.written
    assert [line.rpartition(" ")[2] for line in together.splitlines()] == ["one", "two"]
    handler.handle(record("three"))
    await asyncio.sleep(0)
    assert len(stream.written) == 2


@pytest.mark.anyio
async def test_a_warning_is_written_at_once_after_the_buffered_lines() -> None:
    stream = Counted()
    handler = logs.handler("text", stream)
    handler.handle(record("first"))
    warning = record("second")
    warning.levelno = logging.WARNING
    handler.handle(warning)
    assert [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()] == ["first", "second"]
    await asyncio.sleep(0)
    assert len(stream.written) == 1


def test_without_a_loop_a_line_is_written_at_once() -> None:
    stream = Counted()
    logs.handler("text", stream).handle(record("alone"))
    assert len(stream.written) == 1


def test_what_a_loop_that_ended_left_is_written_at_the_end() -> None:
    stream = Counted()
    handler = logs.handler("text", stream)

    async def log_last() -> None:
        handler.handle(record("last"))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(log_last())
    loop.close()
    handler.flush()  # as logging does when the process ends
    assert stream.getvalue().endswith("last\n")


@pytest.mark.anyio
async def test_what_a_loop_that_ended_left_is_written_with_the_next_loops() -> None:
    stream = Counted()
    handler = logs.handler("text", stream)

    async def log_last() -> None:
        handler.handle(record("last"))

    loop = asyncio.new_event_loop()
    task = loop.create_task(log_last())
    loop.call_soon(loop.stop)
    await asyncio.to_thread(loop.run_forever)
    loop.close()
    assert task.done()
    assert stream.written == []
    handler.handle(record("next"))
    await asyncio.sleep(0)
    (together,) = stream.written
    assert [line.rpartition(" ")[2] for line in together.splitlines()] == ["last", "next"]


@pytest.mark.anyio
async def test_a_closed_log_stream_affects_no_request(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logs.handler("text", stream)
    handler.handle(record("lost"))
    stream.close()
    await asyncio.sleep(0)
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_a_terminal_gets_text_and_all_else_json(form: LogFormat, stream: type[io.StringIO], is_json: bool) -> None:
    assert written(form, stream(), record()).startswith("{") == is_json


def test_json_is_an_object_a_line_whatever_is_in_it() -> None:
    one = record('two\nlines and "quotes" \u2028', id="x", model=None, seconds=0.5)
    one.created = 1767225600.25
    one.msecs = 250
    text = written("json", io.StringIO(), one)
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "app.api",
        "message": 'two\nlines and "quotes" \u2028',
        "id": "x",
        "seconds": 0.5,
    }


def test_an_exception_is_in_its_line() -> None:
    one = record()
    try:
        raise ValueError("why")
    except ValueError:
        one.exc_info = sys.exc_info()
    reported = json.loads(written("json", io.StringIO(), one))
    assert reported["exception"].endswith("ValueError: why")


def test_text_has_the_fields_after_the_message() -> None:
    assert written("text", io.StringIO(), record(id="x", status=200)).endswith(
        "INFO app.api: request id=x status=200\n"
    )


def test_a_log_line_without_a_request_is_like_any_other() -> None:
    stream = io.StringIO()
    log = logging.getLogger("tests.api.informed")
    log.addHandler(logs.handler("json", stream))
    log.propagate = False
    log.setLevel(logging.WARNING)
    logs.inform(log, "request", {"id": "x"})
    assert not stream.getvalue()
    log.setLevel(logging.INFO)
    log.info("request", extra=logs.fields({"id": "x", "model": None}))
    logs.inform(log, "request", {"id": "x", "model": None})
    usual, quick = ({**json.loads(line), "time": ""} for line in stream.getvalue().splitlines())
    assert quick == usual == {"time": "", "level": "info", "logger": log.name, "message": "request", "id": "x"}


@pytest.mark.anyio
async def test_a_request_is_one_line_without_the_callers_text(
    served: FakeServed, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the patient said"
    with caplog.at_level(logging.DEBUG):
        async with connect(service(served)) as client:
            caplog.clear()
            await client.post("/next-word", json={"text": secret}, headers={"X-Request-Id": "mine"})
            await client.post("/next-word", json={"text": secret, secret: 1})
            await client.post("/next-word", content=secret)
            await client.get(f"/models/{secret}")
            await client.get(f"/{secret}?{secret}")
    lines = [one.__dict__["fields"] for one in caplog.records if one.name.startswith("app")]
    assert [(line["route"], line["method"], line["status"]) for line in lines] == [
        ("/next-word", "POST", 200),
        ("/next-word", "POST", 422),
        ("/next-word", "POST", 415),
        ("/models/{model}", "GET", 404),
        ("unknown", "GET", 404),
    ]
    assert lines[0]["id"] == "mine"
    assert all(0 < line["seconds"] < 30 for line in lines)
    reported = json.dumps([one.__dict__ for one in caplog.records if one.name.startswith("app")], default=str)
    assert "patient" not in reported
