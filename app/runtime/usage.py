"""What one request is given by the models, counted while it is given."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True, eq=False)
class Account:
    """One request's share of a model; of several examples the tokens, images and turns add up.

    Times are those of the batcher's clock. Who gives a turn writes here before it hands over the answer, and whoever
    waits for the answer reads after that.
    """

    model: str | None = None
    tokens: int | None = None  # of texts
    cached: int | None = None  # of these, remembered ones
    images: int | None = None
    accepted: float | None = None  # when its first example was
    begun: float | None = None  # when the first turn was that one of its examples had
    ended: float | None = None  # when the last one was over
    engine_s: float = 0.0  # what these turns took, each counted once

    @property
    def queue_s(self) -> float | None:
        """What passed from acceptance to the first turn."""
        return self.begun - self.accepted if self.begun is not None and self.accepted is not None else None

    def accept(self, now: float) -> None:
        """An example waits from now on."""
        if self.accepted is None:
            self.accepted = now

    def take_turn(self, begun: float, ended: float) -> None:
        """A turn was had, however many of the request's examples shared it."""
        if self.begun is None:
            self.begun = begun
        self.ended = ended
        self.engine_s += ended - begun

    def add(self, *, tokens: int | None = None, cached: int | None = None, images: int | None = None) -> None:
        """Count what was answered."""
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens
        if cached is not None:
            self.cached = (self.cached or 0) + cached
        if images is not None:
            self.images = (self.images or 0) + images


# Whose work is being done: set once for a request, seen by all tasks that it begins.
ACCOUNT: Final[ContextVar[Account | None]] = ContextVar("account", default=None)
