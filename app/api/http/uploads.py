"""Uploaded images: the parts of a multipart form, or one raw body. Large ones are spooled to disk."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.http.problems import MAX_SHOWN
from app.errors import InvalidField, Malformed, TooLarge, UnsupportedType

PART: Final = "image"
BASE64: Final = 4 / 3  # of the content's size
MAX_IMAGE_BYTES: Final = 16 * 2**20
IN_MEMORY_BYTES: Final = 16 * 1024  # read without a thread
STORED_BYTES: Final = 64 * 1024  # what is larger is on disk: many may arrive at once, and slowly
BASE64_PIECE: Final = 2**20  # characters decoded at once: about 3 ms


@dataclass(frozen=True)
class Upload:
    """One uploaded image; `name` identifies it in errors: `image`, or `image.3` among several."""

    name: str
    file: UploadFile

    @property
    def in_memory(self) -> bool:
        """Return whether the image is small enough to be read without a thread."""
        return (self.file.size or 0) <= IN_MEMORY_BYTES

    def read(self) -> bytes:
        """Return the content; unless `in_memory`, call this in a thread, since it may be on disk."""
        self.file.file.seek(0)
        return self.file.file.read()


def of_bytes(name: str, content: bytes) -> Upload:
    """Return an image that is in memory. Raise Malformed for an empty one, TooLarge for a large one."""
    upload = Upload(name, UploadFile(BytesIO(content), size=len(content)))
    _require_size(upload)
    return upload


def is_form(content_type: str | None) -> bool:
    """Return whether the body is a form of images or, if not, one image. Raise UnsupportedType for other types."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return True
    if media_type.count("/") != 1 or not media_type.startswith("image/"):
        found = repr(content_type[:MAX_SHOWN]) if content_type else "none"
        raise UnsupportedType(f"Content-Type: expected multipart/form-data or image/*, found {found}")
    return False


async def received(request: Request, most: int, files: ExitStack, *, form: bool) -> list[Upload]:
    """Return the images of a body, one to `most`, in order; their files stay open as long as `files` is.

    Only sizes are checked, not the content. Raise Malformed for an invalid form (RFC 7578) or an empty image,
    InvalidField for a part of another name or no part, TooLarge for more than `most` parts or MAX_IMAGE_BYTES.
    """
    async with aclosing(request.stream()) as stream:
        found = await _parts(request, stream, most, files) if form else [await _raw(stream, files)]
    for file in found:
        files.callback(file.file.close)
    if not found:
        raise InvalidField(PART, f"expected 1 to {most} images, found none")
    uploads = [Upload(f"{PART}.{index}" if len(found) > 1 else PART, file) for index, file in enumerate(found)]
    for upload in uploads:
        _require_size(upload)
    return uploads


async def _parts(
    request: Request, stream: AsyncGenerator[bytes, None], most: int, files: ExitStack
) -> list[UploadFile]:
    try:
        parts = await _Parts(request, stream, most, files).parse()
    except MultiPartException as error:
        raise Malformed(f"body: expected multipart/form-data, found otherwise: {error.message}") from error
    except ValueError as error:  # a charset whose codec can't decode the headers
        raise Malformed(f"body: expected multipart/form-data, found otherwise: {error}") from error
    return [part for _, part in parts.multi_items() if isinstance(part, UploadFile)]


async def _raw(stream: AsyncIterator[bytes], files: ExitStack) -> UploadFile:
    file = spooled(files)
    async for chunk in stream:
        await file.write(chunk)
    return file


def spooled(files: ExitStack) -> UploadFile:
    """Return an empty file, in memory while it is small, which `files` closes."""
    stored = UploadFile(cast(BinaryIO, SpooledTemporaryFile(STORED_BYTES)), size=0)  # noqa: SIM115  # see above
    files.callback(stored.file.close)
    return stored


async def from_base64(text: str) -> bytes:
    """Decode base64, in pieces between which other requests are served. Raise ValueError for another coding."""
    if 0 <= text.find("=") < len(text) - 2:
        raise ValueError("padding before the end")
    pieces = []
    for start in range(0, len(text), BASE64_PIECE):
        pieces.append(b64decode(text[start : start + BASE64_PIECE], validate=True))
        await asyncio.sleep(0)
    return b"".join(pieces)


def _require_size(upload: Upload) -> None:
    size = upload.file.size or 0
    if not size:
        raise Malformed(f"{upload.name}: expected an image, found nothing")
    if size > MAX_IMAGE_BYTES:
        raise TooLarge(f"{upload.name}: expected at most {MAX_IMAGE_BYTES} bytes, found {size}", unread=False)


class _Parts(MultiPartParser):
    """Starlette's parser, which closes its files when it fails, for forms whose parts are all images."""

    spool_max_size = STORED_BYTES

    def __init__(self, request: Request, stream: AsyncGenerator[bytes, None], most: int, files: ExitStack) -> None:
        super().__init__(request.headers, self._whole(stream), max_files=most, max_fields=most)
        self._most = most
        self._files = files
        self._started = 0
        self._finished = False

    async def _whole(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield every chunk; raise Malformed if the form was cut off before its end."""
        async for chunk in stream:
            yield chunk
        if not self._finished:
            raise Malformed("body: expected multipart/form-data, found no end of it")

    def on_part_begin(self) -> None:
        """Count the parts; raise TooLarge before anything of a surplus part is stored."""
        super().on_part_begin()
        self._started += 1
        if self._started > self._most:
            raise TooLarge(f"{PART}: expected at most {self._most} images, found more", unread=False)

    def on_headers_finished(self) -> None:
        """Raise InvalidField for other names. A part is a file whether or not it has a file name."""
        super().on_headers_finished()
        part = self._current_part
        if part.field_name != PART:
            raise InvalidField(part.field_name[:MAX_SHOWN], f"no such part; expected parts named {PART}")
        if part.file is None:
            part.file = spooled(self._files)

    def on_end(self) -> None:
        """Record that the form is complete."""
        self._finished = True
