"""Memory for large bodies: a bounded number of bytes that the requests in progress share."""

from typing import Final

from app.errors import Overloaded

DOCUMENTS_BYTES: Final = 64 * 2**20
IMAGES_BYTES: Final = 64 * 2**20  # in base64, of which up to five copies are made


class MemoryBudget:
    """A number of bytes that bodies may take together; a larger body is admitted while there is no other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """Reserve so many bytes. Raise Overloaded if the others have left too few."""
        if self._reserved and self._reserved + size > self._size:
            raise Overloaded(f"body: {self._reserved} bytes of large bodies are being worked on; retry later")
        self._reserved += size

    def release(self, size: int) -> None:
        """Release what was reserved."""
        self._reserved -= size
