"""The retry policy: which errors are followed by another attempt, and after how many seconds."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from seqserve import errors

STATUSES: Final = (429, 502, 503)
CONNECTION_ERRORS: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
FIRST_WAIT_S: Final = 0.1  # without Retry-After; doubled with each attempt


@dataclass(frozen=True)
class Retries:
    """A policy of at most `attempts` per request, each wait at most `max_wait_s`; a longer Retry-After is final.

    Waits are lengthened at random by up to a half, so that clients do not return together. Every request of the clients
    is idempotent, so connection errors are retried too, timeouts of a started request are not.
    """

    attempts: int = 6
    max_wait_s: float = 30.0
    jitter: Callable[[], float] = random.random  # uniform in 0..1

    def after_failure(self, attempt: int, failure: httpx.TransportError) -> float:
        """Return the seconds to wait after an attempt, counted from 1, without a response.

        Raise ConnectionFailed if it was the last one.
        """
        if attempt >= self.attempts or not isinstance(failure, CONNECTION_ERRORS):
            raise errors.connection_failed(failure) from failure
        return self._jittered(_backoff(attempt))

    def after_error(self, attempt: int, response: httpx.Response) -> float:
        """Return the seconds to wait after an error response, whose content has been read.

        Raise its Problem if it is final.
        """
        wait = _retry_after(response, _backoff(attempt))
        if attempt >= self.attempts or response.status_code not in STATUSES or wait > self.max_wait_s:
            raise errors.from_response(response)
        return self._jittered(wait)

    def _jittered(self, wait: float) -> float:
        return min(wait * (1 + self.jitter() / 2), self.max_wait_s)


def _backoff(attempt: int) -> float:
    return FIRST_WAIT_S * 2.0 ** (attempt - 1)


def _retry_after(response: httpx.Response, default: float) -> float:
    """Return the seconds of Retry-After (RFC 9110, 10.2.3); a date counts from the response's own Date."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(response.headers["Date"])
    except (KeyError, TypeError, ValueError):  # missing, invalid, or one without a time zone
        return default
    return max(0.0, wait.total_seconds())
