"""POST /digits and POST /captions."""

import asyncio
import io
import json
import time
from base64 import b64decode
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from app import images
from app.api.http.fan_out import FAN_OUT
from app.api.http.image_answers import MAX_PREPROCESSING
from app.api.native.schemas import CaptionsAnswer, DigitsAnswer
from app.errors import DeadlineExceeded, InvalidField, NotReady, Overloaded
from app.runtime.families.captions import CaptionLook, Describe, Description, OtherCaption
from app.runtime.families.digits import Classification, Classify
from app.runtime.families.image_decoders import CaptionTag
from app.runtime.families.numbers import Number, NumberDigit, ReadNumber
from app.runtime.predictor import Partial
from tests.api.conftest import BoundedQueue, Endless, FakeServed, connect, listening, service

pytestmark = pytest.mark.anyio

EVENT_STREAM = "text/event-stream"
EVENTS = {"Accept": EVENT_STREAM}


def png(digit: int = 7, **options: Any) -> bytes:
    """An image of 28x28 pixels whose first pixel is the digit to answer."""
    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), digit, np.uint8)).save(file, "png", **options)
    return file.getvalue()


def parts(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", ("a.png", content, "image/png")) for content in contents]


async def seen(payload: Any, deadline: float | None) -> Any:
    """The answer to a payload of the fake: its first pixel, in words for a caption."""
    digit = np.asarray(images.decoded(payload.content))[0, 0, 0].item()
    if isinstance(payload, Classify):
        probabilities = [0.9 if place == digit else 0.1 / 9 for place in range(10)]
        return Classification(digit, 0.9, probabilities, False, None, np.full((28, 28), digit, np.uint8))
    assert isinstance(payload, Describe)
    words = ["a", "\u00e9t\u00e9", str(digit)]
    others = [OtherCaption(f"another {place}", -5.0 - place) for place in range(payload.alternatives)]
    return Description(" ".join(words), -4.5, others)


@dataclass
class FakeVision(FakeServed):
    """A model that decodes its payloads and gives the test's answers."""

    answering: Callable[[Any, float | None], Any] = seen
    streaming: Callable[[Any, float | None], AsyncGenerator[Partial[str, Description], None]] | None = None
    prepared_names: list[str] = field(default_factory=list)
    preparing: int = 0
    preparing_most: int = 0
    at_once: list[bool] = field(default_factory=list)
    bulk: list[bool] = field(default_factory=list)

    async def prepared(
        self, make: Callable[[], Any], *, at_once: bool = False, deadline: float | None = None, **_: bool
    ) -> Any:
        assert deadline is not None
        self.at_once.append(at_once)
        self.preparing += 1
        self.preparing_most = max(self.preparing_most, self.preparing)
        payload = await asyncio.to_thread(make)
        self.preparing -= 1
        images.decoded(payload.content, name=payload.name)
        self.prepared_names.append(payload.name)
        return payload

    async def submit(self, example: Any, *, deadline: float | None = None, bulk: bool = False) -> Any:
        self.bulk.append(bulk)
        return await self.answering(example, deadline)

    async def stream(self, example: Any, *, deadline: float | None = None) -> AsyncGenerator[Any, None]:
        async with aclosing((self.streaming or self.spoken)(example, deadline)) as outputs:
            async for output in outputs:
                yield output

    async def spoken(self, example: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        answer = await self.answering(example, deadline)
        for word in answer.text.split():
            yield Partial([word])
        yield Partial((), answer)


@pytest.fixture
def vision(served: FakeServed) -> FakeVision:
    return FakeVision("eye", served.bundle)


async def post(vision: FakeVision, path: str, *, settings: dict[str, Any] | None = None, **body: Any) -> httpx.Response:
    async with connect(service(vision, **settings or {})) as client:
        return await client.post(path, **body)


async def test_digits_reads_one_raw_image(vision: FakeVision) -> None:
    response = await post(vision, "/digits", content=png(3), headers={"Content-Type": "image/png"})
    assert response.json() == {
        "model": "eye",
        "version": "2",
        "results": [
            {
                "digit": 3,
                "confidence": 0.9,
                "probabilities": [pytest.approx(0.9 if place == 3 else 0.1 / 9) for place in range(10)],
                "rejected": False,
                "reason": None,
            }
        ],
    }
    TypeAdapter(DigitsAnswer).validate_json(response.content, strict=True, extra="forbid")


@pytest.mark.parametrize(("path", "most"), [("/digits", 32), ("/captions", 8)])
async def test_the_largest_number_of_images_is_answered_in_order(vision: FakeVision, path: str, most: int) -> None:
    sent = [place % 10 for place in range(most)]

    async def last_comes_first(payload: Any, deadline: float | None) -> Any:
        for _ in range(100 - int(payload.name.removeprefix("image."))):
            await asyncio.sleep(0)
        return await seen(payload, deadline)

    vision.answering = last_comes_first
    response = await post(vision, path, files=parts(*map(png, sent)))
    results = response.json()["results"]
    assert [one["digit"] if path == "/digits" else int(one["caption"].split()[-1]) for one in results] == sent
    assert sorted(vision.prepared_names) == sorted(f"image.{place}" for place in range(most))


async def test_only_a_single_small_digit_is_preprocessed_inline(vision: FakeVision) -> None:
    large = io.BytesIO()
    Image.new("L", (65, 10)).save(large, "png")
    async with connect(service(vision)) as client:
        for path, contents in (
            ("/digits", [png(3)]),
            ("/digits", [large.getvalue()]),
            ("/digits", [png(3, pnginfo=None) + b"0" * 20_000]),
            ("/digits", [png(3), png(4)]),
            ("/captions", [png(3)]),
        ):
            assert (await client.post(path, files=parts(*contents))).status_code == 200
    assert vision.at_once == [True, False, False, False, False, False]
    assert vision.bulk == [False, False, False, True, True, False]


async def test_the_input_of_the_model_is_returned_on_request(vision: FakeVision) -> None:
    body: dict[str, Any] = {"files": parts(png(1), png(2))}
    response = await post(vision, "/digits?framed=true", **body)
    TypeAdapter(DigitsAnswer).validate_json(response.content, strict=True, extra="forbid")
    for digit, result in enumerate(response.json()["results"], 1):
        reported = result["framed"].removeprefix("data:image/png;base64,")
        image = np.asarray(Image.open(io.BytesIO(b64decode(reported, validate=True))))
        assert image.shape == (28, 28)
        assert (image == digit).all()
    for query in ("", "?framed=false", "?frame=true"):
        response = await post(vision, f"/digits{query}", **body)
        assert all("framed" not in result for result in response.json()["results"])


async def test_an_image_without_a_digit_is_no_error(vision: FakeVision) -> None:
    async def blank(payload: Any, deadline: float | None) -> Classification:
        return Classification(None, 0.2, [0.1] * 10, True, "blank image", np.zeros((28, 28), np.uint8))

    vision.answering = blank
    response = await post(vision, "/digits", files=parts(png()))
    (result,) = response.json()["results"]
    assert (response.status_code, result["digit"], result["rejected"]) == (200, None, True)
    assert result["reason"] == "blank image"


async def test_captions_passes_its_parameters_to_the_model_and_returns_the_answer(vision: FakeVision) -> None:
    asked: list[Describe] = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        asked.append(payload)
        return await seen(payload, deadline)

    vision.answering = answering
    first = await post(vision, "/captions", content=png(3), headers={"Content-Type": "image/png"})
    second = await post(vision, "/captions?beam=10&alternatives=2&model=eye&colour=red", files=parts(png(4)))
    assert asked == [Describe(png(3)), Describe(png(4), "image", 10, 2)]
    caption = {"caption": "a \u00e9t\u00e9 3", "log_probability": -4.5, "alternatives": []}
    caption |= {"confidence": None, "reason": None, "tags": [], "words": None}
    assert first.json() == {"model": "eye", "version": "2", "results": [caption]}
    others = [{"caption": f"another {place}", "log_probability": -5.0 - place} for place in range(2)]
    assert second.json()["results"] == [caption | {"caption": "a \u00e9t\u00e9 4", "alternatives": others}]
    TypeAdapter(CaptionsAnswer).validate_json(second.content, strict=True, extra="forbid")


async def test_captions_returns_tags_and_where_each_word_looked(vision: FakeVision) -> None:
    asked: list[Describe] = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        asked.append(payload)
        looks = [CaptionLook("dog", [[0.25, 0.25], [0.0, 0.25]], 0.125)]
        return Description(None, -1.0, [], 0.25, "unsure", [CaptionTag("dog", 0.75, [1, 2, 3, 4])], looks)

    vision.answering = answering
    query = "/captions?tags=false&people=neutral&attention=true&threshold=0.5"
    response = await post(vision, query, content=png(3), headers={"Content-Type": "image/png"})
    assert asked == [Describe(png(3), tags=False, people="neutral", attention=True, threshold=0.5)]
    (result,) = response.json()["results"]
    assert (result["caption"], result["confidence"], result["reason"]) == (None, 0.25, "unsure")
    assert result["tags"] == [{"label": "dog", "score": 0.75, "box": [1, 2, 3, 4]}]
    assert result["words"] == [{"text": "dog", "weights": [[0.25, 0.25], [0.0, 0.25]], "language": 0.125}]
    TypeAdapter(CaptionsAnswer).validate_json(response.content, strict=True, extra="forbid")


@pytest.mark.parametrize("readable", [True, False])
async def test_a_number_is_read_beside_the_digit_and_its_image_is_not_rejected(
    vision: FakeVision, readable: bool
) -> None:
    several = Classification(
        None, 0.0, [0.1] * 10, rejected=True, reason="several digits", framed=np.zeros((28, 28), np.uint8)
    )
    digits = [NumberDigit(4, 0.9, [1, 2, 3, 4]), NumberDigit(2, 0.8, [5, 2, 3, 4])]
    number = Number("42", 0.75, digits, None) if readable else Number(None, 0.1, [], "no number to be read")

    async def answering(payload: Any, deadline: float | None) -> Any:
        return number if isinstance(payload, ReadNumber) else several

    vision.answering = answering
    (result,) = (await post(vision, "/digits?number=true", files=parts(png()))).json()["results"]
    assert (result["rejected"], result["reason"]) == ((False, None) if readable else (True, "several digits"))
    assert (result["number"], result["number_confidence"]) == (("42", 0.75) if readable else (None, 0.1))
    assert result["digits"] == [asdict(digit) for digit in number.digits]
    (plain,) = (await post(vision, "/digits", files=parts(png()))).json()["results"]
    assert plain.keys() == {"digit", "confidence", "probabilities", "rejected", "reason"}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/digits?framed=maybe", "framed"),
        ("/digits?number=1.5", "number"),
        ("/digits?number=", "number"),
        ("/captions?beam=0", "beam"),
        ("/captions?beam=11", "beam"),
        ("/captions?beam=3.5", "beam"),
        ("/captions?beam=", "beam"),
        ("/captions?alternatives=-1", "alternatives"),
        ("/captions?alternatives=10", "alternatives"),
        ("/captions?alternatives=many", "alternatives"),
    ],
)
async def test_an_invalid_query_parameter_is_named(vision: FakeVision, path: str, field: str) -> None:
    response = await post(vision, path, files=parts(png()))
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize("path", ["/digits", "/captions"])
async def test_an_unknown_model_is_a_404(vision: FakeVision, path: str) -> None:
    assert (await post(vision, f"{path}?model=other", files=parts(png()))).status_code == 404
    async with connect(service()) as client:
        response = await client.post(path, files=parts(png()))
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


LARGE = io.BytesIO()
Image.new("1", (5001, 5000)).save(LARGE, "png")  # 25 megapixels and a column in three kilobytes


@pytest.mark.parametrize(
    ("path", "contents", "status", "reported"),
    [
        ("/digits", [png()] * 33, 413, "image: expected at most 32 images, found more"),
        ("/captions", [png()] * 9, 413, "image: expected at most 8 images, found more"),
        ("/digits", [png(), LARGE.getvalue()], 413, "image.1: expected at most 25000000 pixels"),
        ("/captions", [LARGE.getvalue()], 413, "image: expected at most 25000000 pixels"),
        ("/digits", [png(), png(), b"not an image"], 400, "image.2: expected PNG, JPEG, WebP, BMP, GIF"),
        ("/captions", [b"%PDF-1.7"], 400, "image: expected PNG, JPEG, WebP, BMP, GIF"),
        ("/digits", [png()[:-30]], 400, "image: expected a whole PNG file"),
        ("/digits", [png(), b""], 400, "image.1: expected an image, found nothing"),
    ],
)
async def test_invalid_images_are_named_by_their_index(
    vision: FakeVision, path: str, contents: list[bytes], status: int, reported: str
) -> None:
    response = await post(vision, path, files=parts(*contents))
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.json()["detail"].startswith(reported)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP", "BMP", "GIF"])
async def test_the_file_name_of_an_image_does_not_matter(vision: FakeVision, form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (28, 28)).save(file, form)
    called = [("image", ("a.exe", file.getvalue(), "text/html")), ("image", (None, file.getvalue(), "image/heic"))]
    assert (await post(vision, "/digits", files=called)).status_code == 200
    raw: dict[str, Any] = {"content": file.getvalue(), "headers": {"Content-Type": "image/svg+xml; charset=utf-8"}}
    assert (await post(vision, "/digits", **raw)).status_code == 200


async def test_an_invalid_image_fails_its_request_and_the_others_are_cancelled(vision: FakeVision) -> None:
    started, given_up = [], []

    async def endless(payload: Any, deadline: float | None) -> Any:
        started.append(payload.name)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            given_up.append(payload.name)

    vision.answering = endless
    response = await post(vision, "/digits", files=parts(png(), png(), b"bad", png()))
    assert response.status_code == 400
    assert sorted(started) == sorted(given_up)


@pytest.mark.parametrize("room", [1, 3, FAN_OUT])
async def test_many_images_fit_any_queue_and_each_is_decoded_once(vision: FakeVision, room: int) -> None:
    queue = BoundedQueue(room, seen)
    vision.answering = queue.answer
    response = await post(vision, "/digits", files=parts(*[png()] * 32))
    assert len(response.json()["results"]) == 32
    assert queue.most <= room
    assert len(vision.prepared_names) == 32


async def test_one_request_does_not_fill_the_preprocessing_queue(vision: FakeVision) -> None:
    await post(vision, "/digits", files=parts(*[png()] * 32))
    assert vision.preparing_most == MAX_PREPROCESSING


async def test_a_request_that_never_enters_the_queue_is_rejected(vision: FakeVision) -> None:
    vision.answering = BoundedQueue(0, seen).answer
    response = await post(vision, "/digits", files=parts(png(), png()))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("path", ["/digits", "/captions"])
async def test_a_client_can_lower_the_deadline(vision: FakeVision, path: str) -> None:
    deadlines: list[float] = []

    async def answering(payload: Any, deadline: float | None) -> Any:
        assert deadline is not None
        deadlines.append(deadline)
        return await seen(payload, deadline)

    vision.answering = answering
    before = time.monotonic()
    await post(vision, path, files=parts(png()), headers={"X-Request-Timeout": "2.5"})
    await post(vision, path, files=parts(png()), headers={"X-Request-Timeout": "2.5"} | EVENTS)
    after = time.monotonic()
    assert len(deadlines) == 2
    assert all(before + 2.5 <= deadline <= after + 2.5 for deadline in deadlines)
    response = await post(vision, path, files=parts(png()), headers={"X-Request-Timeout": "0"})
    assert response.json()["errors"][0]["field"] == "X-Request-Timeout"


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Each event's name and data; the stream has nothing else in it."""
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("accept", ["text/event-stream", "Text/Event-Stream; q=1", "image/*, text/event-stream"])
async def test_words_are_streamed_and_then_the_caption_as_in_the_plain_answer(vision: FakeVision, accept: str) -> None:
    body: dict[str, Any] = {"content": png(3), "params": {"alternatives": 2}}
    plain = await post(vision, "/captions", headers={"Content-Type": "image/png", "Accept": "application/json"}, **body)
    response = await post(vision, "/captions", headers={"Content-Type": "image/png", "Accept": accept}, **body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    words = [("word", {"word": word}) for word in ("a", "\u00e9t\u00e9", "3")]
    assert events(response) == [*words, ("caption", plain.json())]


async def test_all_accept_headers_are_read(vision: FakeVision) -> None:
    headers = [("Content-Type", "image/png"), ("Accept", "application/json"), ("Accept", "text/event-stream")]
    async with connect(service(vision)) as client:
        response = await client.post("/captions", content=png(3), headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("accept", ["text/event-stream;q=0", "Text/Event-Stream; Q=0.000, */*", "text/*"])
async def test_words_are_streamed_only_if_events_are_accepted_by_name(vision: FakeVision, accept: str) -> None:
    response = await post(vision, "/captions", content=png(3), headers={"Content-Type": "image/png", "Accept": accept})
    assert response.headers["content-type"] == "application/json"


async def test_a_word_is_sent_before_the_next_is_known(vision: FakeVision) -> None:
    go = asyncio.Event()
    received: list[bytes] = []

    async def telling(payload: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        yield Partial(["one"])
        await go.wait()
        yield Partial(["two"], Description("one two", -1.0, []))

    async def send(message: Any) -> None:
        received.append(message.get("body", b""))
        if b"one" in received[-1]:
            go.set()

    vision.streaming = telling
    app = service(vision)
    async with app.router.lifespan_context(app) as state:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/captions",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png"), (b"accept", b"text/event-stream")],
            "state": dict(state or {}),
        }
        sent = iter([{"type": "http.request", "body": png(), "more_body": False}])

        async def receive() -> Any:
            return next(sent, None) or await asyncio.get_running_loop().create_future()

        await app(scope, receive, send)
    assert [chunk.split(b"\n")[0] for chunk in received if chunk] == [b"event: word", b"event: word", b"event: caption"]


async def test_a_caption_without_words_is_streamed(vision: FakeVision) -> None:
    async def silent(payload: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        yield Partial((), Description("", -1.0, []))

    vision.streaming = silent
    response = await post(vision, "/captions", files=parts(png()), headers=EVENTS)
    assert [name for name, _ in events(response)] == ["caption"]


@pytest.mark.parametrize(
    ("content", "error", "status"),
    [(b"bad", None, 400), (png(), Overloaded("full"), 503), (png(), DeadlineExceeded("late"), 504)],
)
async def test_an_error_before_the_first_event_has_its_status(
    vision: FakeVision, content: bytes, error: Exception | None, status: int
) -> None:
    async def failing(payload: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        if error:
            raise error
        yield Partial(["a"])

    vision.streaming = failing
    response = await post(vision, "/captions", files=parts(content), headers=EVENTS)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeadlineExceeded("late"), 504), (NotReady("ending"), 503), (InvalidField("beam", "too\nwide"), 422)],
)
async def test_a_later_error_is_the_last_event(vision: FakeVision, error: Exception, status: int) -> None:
    async def failing(payload: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        yield Partial(["a"])
        raise error

    vision.streaming = failing
    response = await post(vision, "/captions", files=parts(png()), headers=EVENTS)
    (first, _), (last, problem) = events(response)
    assert (response.status_code, first, last) == (200, "word", "error")
    assert (problem["status"], problem["detail"]) == (status, str(error))


async def test_several_images_are_not_streamed(vision: FakeVision) -> None:
    response = await post(vision, "/captions", files=parts(png(), png(), png()), headers=EVENTS)
    reported = {"field": "image", "message": "expected one image with Accept: text/event-stream, found 3"}
    assert (response.status_code, response.json()["errors"]) == (422, [reported])


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: service", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("path", "accept", "words"),
    [("/digits", "*/*", 0), ("/captions", "*/*", 0), ("/captions", EVENT_STREAM, 0), ("/captions", EVENT_STREAM, 1)],
)
def test_a_disconnect_cancels_the_work(vision: FakeVision, path: str, accept: str, words: int) -> None:
    endless = Endless()

    async def streamed(payload: Any, deadline: float | None) -> AsyncGenerator[Partial[str, Description], None]:
        for _ in range(words):
            yield Partial(["a"])
        await endless(payload, deadline)

    vision.answering, vision.streaming = endless, streamed
    with listening(service(vision)) as connection, connection.makefile("rb") as received:
        connection.sendall(request(path, png(), "Content-Type: image/png", f"Accept: {accept}"))
        assert endless.started.wait(30)
        if words:
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
        received.close()
        connection.close()
        assert endless.cancelled.wait(30)


@pytest.mark.parametrize(("name", "status"), [("image", b"413"), ("file", b"422")])
def test_a_connection_stays_open_after_a_form_rejected_while_it_arrives(
    vision: FakeVision, name: str, status: bytes
) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    body = (head + b"a" * 2**17 + b"\r\n") * 33 + b"--x--\r\n"
    with listening(service(vision)) as connection, connection.makefile("rb") as received:
        for _ in range(2):
            connection.sendall(request("/digits", body, "Content-Type: multipart/form-data; boundary=x"))
            assert received.readline().split()[1] == status
            headers = dict(line.lower().split(b": ") for line in iter(received.readline, b"\r\n"))
            received.read(int(headers[b"content-length"]))
