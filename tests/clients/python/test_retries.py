"""The retry policy: waits and their bounds."""

import httpx
import pytest
from seqserve import Problem, Retries

STEADY = Retries(attempts=9, max_wait_s=10, jitter=lambda: 0.0)


def unavailable(**headers: str) -> httpx.Response:
    return httpx.Response(503, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    assert STEADY.after_error(1, unavailable(Retry_After="7")) == 7
    date = {"Date": "Mon, 02 Mar 2026 10:00:00 GMT", "Retry_After": "Mon, 02 Mar 2026 10:00:04 GMT"}
    assert STEADY.after_error(1, unavailable(**date)) == 4


@pytest.mark.parametrize("value", ["", "soon", "-1", "Mon, 02 Mar 2026 10:00:04 GMT"])
@pytest.mark.parametrize("date", [{}, {"Date": "Mon, 02 Mar 2026 10:00:00 -0000"}])
def test_without_a_usable_retry_after_waits_double(value: str, date: dict[str, str]) -> None:
    waits = [STEADY.after_error(attempt, unavailable(Retry_After=value, **date)) for attempt in (1, 2, 3)]
    assert waits == pytest.approx([0.1, 0.2, 0.4])


def test_waits_after_connection_errors_double_up_to_the_longest() -> None:
    waits = [STEADY.after_failure(attempt, httpx.ConnectError("")) for attempt in (1, 2, 8)]
    assert waits == pytest.approx([0.1, 0.2, 10])


def test_jitter_lengthens_a_wait_by_up_to_a_half_within_the_longest() -> None:
    latest = Retries(max_wait_s=10, jitter=lambda: 1.0)
    assert latest.after_error(1, unavailable(Retry_After="4")) == 6
    assert latest.after_error(1, unavailable(Retry_After="9")) == 10


@pytest.mark.parametrize("status", [400, 404, 500, 504])
def test_other_errors_are_final(status: int) -> None:
    with pytest.raises(Problem):
        STEADY.after_error(1, httpx.Response(status))
