"""Memory for large bodies: a bounded number of bytes that the requests in progress share."""

from typing import Final

from app.errors import Overloaded

DOCUMENTS_BYTES: Final = 64 * 2**20
IMAGES_BYTES: Final = 64 * 2**20  # in base64, of which up to five copies are made


class Room:
    """A number of bytes that bodies take together; one that is larger is alone in it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0

    def take(self, size: int) -> None:
        """Take so many bytes. Raise Overloaded if the others have left too few."""
        if self._taken and self._taken + size > self._size:
            raise Overloaded(f"body: {self._taken} bytes of large bodies are being worked on; retry later")
        self._taken += size

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self._taken -= size
