"""The images of a request, as they arrive."""

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message

from app.api.http.uploads import MAX_IMAGE_BYTES, Upload, is_form, received
from app.errors import InvalidField, Malformed, SeqserveError, TooLarge, UnsupportedType

FORM = "multipart/form-data; boundary=x"
END = b"--x--\r\n"
CHUNK = 1000  # bytes; so that names, boundaries and contents are cut somewhere

pytestmark = pytest.mark.anyio


def part(content: bytes, name: str = "image", *, disposition: str = '; filename="a"', more: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{disposition}\r\n{more}\r\n'
    return head.encode() + content + b"\r\n"


def request(body: bytes, content_type: str, chunk: int = CHUNK) -> Request:
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    arriving = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(arriving)

    return Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive)


async def sent(body: bytes, files: ExitStack, content_type: str = FORM, **options: Any) -> list[Upload]:
    return await received(request(body, content_type, **options), 3, files, form=is_form(content_type))


@pytest.mark.parametrize("chunk", [1, 7, CHUNK])
async def test_parts_come_in_their_order_and_whole(chunk: int) -> None:
    contents = [b"\x00\r\n--x\r" * 50, b"b", b"\r\n"]
    with ExitStack() as files:
        found = await sent(b"".join(map(part, contents)) + END, files, chunk=chunk)
        assert [upload.read() for upload in found] == contents
        assert [upload.read() for upload in found] == contents  # as often as wanted
    assert [upload.name for upload in found] == ["image.0", "image.1", "image.2"]


@pytest.mark.parametrize(
    "content_type", ["image/png", "image/jpeg; charset=utf-8; charset=x", "Image/x-unheard-of", "image/*"]
)
async def test_a_raw_body_is_one_image_whatever_it_calls_itself(content_type: str) -> None:
    with ExitStack() as files:
        (upload,) = await sent(part(b"a") + END, files, content_type)
        assert (upload.name, upload.read()) == ("image", part(b"a") + END)


@pytest.mark.parametrize(
    "disposition",
    ["", '; filename="a.txt"', '; filename=""', '; filename="\u00e9\\"\'"', "; filename*=utf-8''a.png"],
)
@pytest.mark.parametrize("more", ["", "Content-Type: text/plain\r\n", "Content-Type: image/png\r\nX-Of: mine\r\n"])
async def test_what_a_part_says_of_itself_does_not_matter(disposition: str, more: str) -> None:
    with ExitStack() as files:
        (upload,) = await sent(part(b"\xff\xfe", disposition=disposition, more=more) + END, files)
        assert (upload.name, upload.read()) == ("image", b"\xff\xfe")


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="x"',
        "Multipart/Form-Data; boundary=x; charset=utf-8",
        "multipart/form-data; boundary=x; charset=no-such-thing",
    ],
)
async def test_a_form_may_be_announced_in_many_ways(content_type: str) -> None:
    with ExitStack() as files:
        assert len(await sent(part(b"a") + END, files, content_type)) == 1


@pytest.mark.parametrize("content_type", [None, "", "png", "application/json", "multipart/mixed; boundary=x"])
def test_another_type_is_rejected(content_type: str | None) -> None:
    with pytest.raises(UnsupportedType, match=r"expected multipart/form-data or image/\*, found "):
        is_form(content_type)


@pytest.mark.parametrize(
    ("content_type", "body", "error", "reported"),
    [
        (FORM, b"", Malformed, "no end"),
        (FORM, part(b"a"), Malformed, "no end"),
        (FORM, (part(b"a") + END)[:-5], Malformed, "no end"),
        (FORM, part(b"a" * 5000)[:4000], Malformed, "no end"),
        (FORM, b"--y\r\n", Malformed, "Invalid"),
        (FORM, b"{}", Malformed, "Invalid"),
        (FORM, b"--x\r\n\r\na\r\n" + END, Malformed, "name"),
        (FORM, part(b"a", more=f"X: {'x' * 10_000}\r\n") + END, Malformed, "Invalid"),
        (FORM, part(b"a", more="X: x\r\n" * 100) + END, Malformed, "Invalid"),
        ("multipart/form-data", part(b"a") + END, Malformed, "boundary"),
        (f"multipart/form-data; boundary={'x' * 300}", part(b"a") + END, Malformed, "Invalid"),
        ("multipart/form-data; boundary=x; charset=undefined", part(b"a") + END, Malformed, "undefined"),
        (FORM, END, InvalidField, "image: expected 1 to 3 images, found none"),
        (FORM, part(b"a", "file") + END, InvalidField, "file: no such part; expected parts named image"),
        (FORM, part(b"a") + part(b"a", "x" * 500, disposition="") + END, InvalidField, f"^{'x' * 80}: no such part"),
        (FORM, part(b"a", "") + END, InvalidField, "^: no such part"),
        (FORM, part(b"a") * 4 + END, TooLarge, "image: expected at most 3 images, found more"),
        (FORM, part(b"a", disposition="") * 4 + END, TooLarge, "image: expected at most 3 images, found more"),
        (FORM, part(b"") + END, Malformed, "image: expected an image, found nothing"),
        (FORM, part(b"a") + part(b"", disposition="") + END, Malformed, r"image\.1: expected an image, found nothing"),
        ("image/png", b"", Malformed, "image: expected an image, found nothing"),
    ],
)
async def test_an_invalid_part_is_rejected_by_name(
    content_type: str, body: bytes, error: type[SeqserveError], reported: str
) -> None:
    with ExitStack() as files, pytest.raises(error, match=reported):
        await sent(body, files, content_type)


async def test_an_image_may_be_as_large_as_the_limit_and_no_larger() -> None:
    largest = b"a" * MAX_IMAGE_BYTES
    with ExitStack() as files:
        assert (await sent(largest, files, "image/png", chunk=2**20))[0].read() == largest
        with pytest.raises(TooLarge, match=f"^image: expected at most {len(largest)} bytes, found {len(largest) + 1}$"):
            await sent(largest + b"a", files, "image/png", chunk=2**20)
        with pytest.raises(TooLarge, match=r"^image\.1: expected at most"):
            await sent(part(b"a") + part(largest + b"a") + END, files, chunk=2**20)


@pytest.mark.parametrize("size", [10, 3 * 2**20], ids=["in memory", "on disk"])
@pytest.mark.parametrize("content_type", [FORM, "image/png"])
async def test_files_are_open_as_long_as_they_are_wanted(size: int, content_type: str) -> None:
    with ExitStack() as files:
        (upload,) = await sent(part(b"a" * size) + END, files, content_type, chunk=2**20)
        assert not upload.file.file.closed
    assert upload.file.file.closed


async def test_a_form_that_stops_arriving_leaves_no_file_behind() -> None:
    """An open one would be a ResourceWarning."""
    waiting = asyncio.Event()
    arrived = iter([part(b"a" * 3 * 2**20)])

    async def receive() -> Message:
        if body := next(arrived, None):
            return {"type": "http.request", "body": body, "more_body": True}
        waiting.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    stopped = Request({"type": "http", "headers": [(b"content-type", FORM.encode())]}, receive)
    with ExitStack() as files:
        arriving = asyncio.ensure_future(received(stopped, 3, files, form=True))
        await waiting.wait()
        arriving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await arriving
