"""Answers to the images of one request: a few at a time in preprocessing, all of them concurrent."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from app.api.http.fan_out import all_answers
from app.api.http.uploads import Upload
from app.runtime.preprocessing import Payload
from app.runtime.registry import Served

MAX_PREPROCESSING: Final = 4  # images of one request in preprocessing, so that other requests get their share

MakePayload: TypeAlias = Callable[[bytes, str], Payload]  # from an image's content and name


async def image_answers(served: Served, images: Sequence[Upload], make: MakePayload, deadline: float) -> list[Any]:
    """Return the answers to the images, in order; if one fails, cancel the rest and raise its error."""
    slots = asyncio.Semaphore(MAX_PREPROCESSING)
    examples = [ImageExample(served, image, make, deadline, slots, alone=len(images) == 1) for image in images]
    return await all_answers([each.answer for each in examples], deadline)


@dataclass
class ImageExample:
    """One image of a request, read and preprocessed once even if a full queue rejects it."""

    served: Served
    image: Upload
    make: MakePayload
    deadline: float
    slots: asyncio.Semaphore = field(default_factory=asyncio.Semaphore)
    alone: bool = True  # the request's only image
    preprocessed: Any = None

    async def answer(self) -> Any:
        """Return the answer to the image."""
        return await self.served.submit(await self.prepared(), deadline=self.deadline, bulk=not self.alone)

    async def prepared(self) -> Any:
        """Return the preprocessed image."""
        if self.preprocessed is None:
            async with self.slots:
                inline = self.alone and self.image.in_memory and not self._payload().slow  # at most one a request
                self.preprocessed = await self.served.prepared(
                    self._payload, at_once=inline, deadline=self.deadline, bulk=not self.alone
                )
        return self.preprocessed

    def _payload(self) -> Payload:
        return self.make(self.image.read(), self.image.name)
