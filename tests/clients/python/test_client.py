"""Both clients against scripted responses: requests, retries, errors and streams."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
import seqserve
from seqserve import AsyncClient, Client, Retries

EMPTY: Final[dict[str, Any]] = {"models": []}
QUICK: Final = Retries(attempts=3, max_wait_s=5, jitter=lambda: 0.0)
NOW: Final = "0"  # of Retry-After
EVENTS: Final = (
    'event: word\ndata: {"word":"a"}\n\n'
    ": a comment\n\n"
    'event: word\ndata: {"word":"dog"}\n\n'
    'event: caption\ndata: {"model":"m","version":"1","results":[{"caption":"a dog","log_probability":-1.5,'
    '"alternatives":[],"confidence":null,"reason":null,"tags":[],"words":null}]}\n\n'
)
Handler = Callable[[httpx.Request], httpx.Response]


class Script:
    """A server that gives one response after another; `requests` are those it received."""

    def __init__(self, *responses: httpx.Response | httpx.TransportError) -> None:
        self.responses = list(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self.responses.pop(0)
        if isinstance(response, httpx.TransportError):
            response.request = request
            raise response
        return response


def by_client(script: Script, method: str, *arguments: Any, **options: Any) -> Any:
    with Client("http://server/prefix", retries=QUICK, transport=httpx.MockTransport(script)) as client:
        found = getattr(client, method)(*arguments, **options)
        return list(found) if inspect.isgenerator(found) else found


def by_async_client(script: Script, method: str, *arguments: Any, **options: Any) -> Any:
    async def call() -> Any:
        transport = httpx.MockTransport(script)
        async with AsyncClient("http://server/prefix", retries=QUICK, transport=transport) as client:
            found = getattr(client, method)(*arguments, **options)
            return [event async for event in found] if inspect.isasyncgen(found) else await found

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [by_client, by_async_client])


def problem(status: int, kind: str, headers: dict[str, str] | None = None, **members: Any) -> httpx.Response:
    document = {"type": f"/problems/{kind}", "title": "A title", "status": status, "detail": "a detail", **members}
    return httpx.Response(status, json=document, headers={"Content-Type": "application/problem+json"} | (headers or {}))


@both
def test_a_request_has_a_path_below_the_url_and_only_the_given_options(call: Any) -> None:
    answer = {
        "model": "m",
        "version": "1",
        "suggestions": [],
        "context_tokens": 1,
        "unknown_words": [],
        "cached_tokens": 0,
    }
    script = Script(httpx.Response(200, json=answer))
    assert call(script, "next_word", "the", top_k=3) == seqserve.NextWordAnswer("m", "1", [], 1, [], 0)
    (request,) = script.requests
    assert str(request.url) == "http://server/prefix/next-word"
    assert httpx.Response(200, content=request.content).json() == {"text": "the", "top_k": 3}


def test_a_client_has_a_session_of_its_own_and_sends_its_key() -> None:
    script = Script(*(httpx.Response(200, json=EMPTY) for _ in range(3)))
    transport = httpx.MockTransport(script)
    with Client(transport=transport, api_key="secret") as first, Client(transport=transport) as second:
        first.models()
        first.models()
        second.models()
    sessions = [request.headers["X-Session-Id"] for request in script.requests]
    assert sessions[0] == sessions[1] != sessions[2]
    assert [request.headers.get("Authorization") for request in script.requests] == ["Bearer secret"] * 2 + [None]


@both
def test_images_are_parts_of_a_form_and_are_sent_again(call: Any, tmp_path: Any) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(b"second")
    answer = {"model": "m", "version": "1", "results": []}
    script = Script(httpx.ReadError("reset"), httpx.Response(200, json=answer))
    assert call(script, "digits", b"first", file, framed=True).results == []
    bodies = [request.content for request in script.requests]
    assert bodies[0] == bodies[1]
    assert bodies[0].count(b'name="image"') == 2
    assert bodies[0].index(b"first") < bodies[0].index(b"second")
    assert script.requests[0].url.query == b"framed=true"


@both
@pytest.mark.parametrize("status", [429, 503])
def test_429_and_503_are_retried(call: Any, status: int) -> None:
    script = Script(problem(status, "overloaded", {"Retry-After": NOW}), httpx.Response(200, json=EMPTY))
    assert call(script, "models") == []
    assert len(script.requests) == 2


@both
def test_the_last_error_is_raised(call: Any) -> None:
    script = Script(*(problem(503, "overloaded", {"Retry-After": NOW, "X-Request-Id": "7"}) for _ in range(3)))
    with pytest.raises(seqserve.Overloaded, match="503 A title: a detail") as raised:
        call(script, "models")
    assert (raised.value.status, raised.value.type, raised.value.request_id) == (503, "/problems/overloaded", "7")
    assert not script.responses


@both
def test_a_longer_wait_than_allowed_is_final(call: Any) -> None:
    script = Script(problem(429, "rate-limited", {"Retry-After": "6"}))
    with pytest.raises(seqserve.RateLimited):
        call(script, "models")


@both
def test_connection_errors_are_retried_and_timeouts_are_not(call: Any) -> None:
    script = Script(httpx.ConnectError("refused"), httpx.RemoteProtocolError("closed"), httpx.Response(200, json=EMPTY))
    assert call(script, "models") == []
    with pytest.raises(seqserve.ConnectionFailed, match=r"http://server/prefix/models: slow") as raised:
        call(Script(httpx.ReadTimeout("slow")), "models")
    assert isinstance(raised.value.__cause__, httpx.ReadTimeout)
    with pytest.raises(seqserve.ConnectionFailed, match="the last"):
        call(Script(httpx.ReadError("1"), httpx.ReadError("2"), httpx.ReadError("the last")), "models")


@both
def test_a_wrong_field_is_named_and_not_retried(call: Any) -> None:
    script = Script(problem(422, "invalid-field", errors=[{"field": "top_k", "message": "expected less"}]))
    with pytest.raises(seqserve.InvalidField) as raised:
        call(script, "next_word", "the", top_k=99)
    assert raised.value.errors == [seqserve.FieldError("top_k", "expected less")]


@both
@pytest.mark.parametrize("content", ["", "<html>", "null", "[1]", '{"models": 1}', '{"model": []}'])
def test_a_response_of_another_server_is_unexpected(call: Any, content: str) -> None:
    with pytest.raises(seqserve.UnexpectedAnswer, match="http://server/prefix/models: expected ModelList, found"):
        call(Script(httpx.Response(200, text=content)), "models")


@both
def test_an_error_of_a_proxy_or_of_an_unknown_type_has_the_class_of_its_status(call: Any) -> None:
    with pytest.raises(seqserve.TooLarge, match="413 Request Entity Too Large: <html>"):
        call(Script(httpx.Response(413, text="<html>")), "models")
    with pytest.raises(seqserve.NotFound):
        call(Script(problem(404, "of-a-later-server")), "models")
    with pytest.raises(seqserve.Problem, match="500"):
        call(Script(httpx.Response(500)), "models")


@both
def test_a_caption_is_streamed_word_by_word(call: Any) -> None:
    script = Script(httpx.Response(200, text=EVENTS))
    *words, answer = call(script, "stream_caption", b"image")
    assert words == [seqserve.CaptionWord("a"), seqserve.CaptionWord("dog")]
    assert answer.results == [seqserve.Caption("a dog", -1.5, [], None, None, [], None)]
    assert script.requests[0].headers["Accept"] == "text/event-stream"


@both
def test_an_error_before_the_stream_is_retried(call: Any) -> None:
    script = Script(problem(503, "not-ready", {"Retry-After": NOW}), httpx.Response(200, text=EVENTS))
    assert len(call(script, "stream_caption", b"image")) == 3


@both
def test_an_error_in_the_stream_is_raised(call: Any) -> None:
    data = problem(504, "deadline-exceeded").text
    with pytest.raises(seqserve.DeadlineExceeded):
        call(Script(httpx.Response(200, text=f"event: error\ndata: {data}\n\n")), "stream_caption", b"image")


@both
def test_an_incomplete_stream_is_an_error(call: Any) -> None:
    with pytest.raises(seqserve.ConnectionFailed, match="found none"):
        call(Script(httpx.Response(200, text=EVENTS[:60])), "stream_caption", b"image")


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, list[inspect.Parameter]]:
        public = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
        return {name: [*inspect.signature(value).parameters.values()] for name, value in public.items()}

    waiting, awaiting = signatures(Client), signatures(AsyncClient)
    assert waiting.pop("close") == awaiting.pop("aclose")
    assert waiting == awaiting
