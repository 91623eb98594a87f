"""Model usage of one request, recorded while the models work on it."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True, eq=False)
class RequestUsage:
    """Tokens, images and engine time of one request, summed over its examples.

    Times are those of the scheduler's clock. The scheduler writes before it delivers an answer; readers wait for the
    answer, so no lock is needed.
    """

    model: str | None = None
    tokens: int | None = None
    cached: int | None = None  # tokens whose state was cached
    images: int | None = None
    accepted: float | None = None  # the first example entered the queue
    started: float | None = None  # start of the first step with one of the examples
    finished: float | None = None  # end of the last such step
    engine_s: float = 0.0  # total duration of these steps, each counted once

    @property
    def queue_s(self) -> float | None:
        """Return the seconds from acceptance to the first step, or None if there was none."""
        return self.started - self.accepted if self.started is not None and self.accepted is not None else None

    def accept(self, now: float) -> None:
        """Record that an example entered the queue."""
        if self.accepted is None:
            self.accepted = now

    def record_step(self, started: float, finished: float) -> None:
        """Record one scheduling step, once for all of the request's examples in its batch."""
        if self.started is None:
            self.started = started
        self.finished = finished
        self.engine_s += finished - started

    def add(self, *, tokens: int | None = None, cached: int | None = None, images: int | None = None) -> None:
        """Add the counts of one answer."""
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens
        if cached is not None:
            self.cached = (self.cached or 0) + cached
        if images is not None:
            self.images = (self.images or 0) + images


# Usage of the current request; inherited by the tasks that it creates.
REQUEST_USAGE: Final[ContextVar[RequestUsage | None]] = ContextVar("request_usage", default=None)
