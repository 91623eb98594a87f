"""Every error has a status, and no error says more than it should."""

import inspect
import logging

import pytest

from app import errors
from app.api.http import problems
from app.errors import SeqserveError
from tests.api.conftest import FakeServed, connect, service

ERRORS = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found is not SeqserveError]


def test_every_error_has_its_own_status() -> None:
    assert set(problems.KINDS) == set(ERRORS)
    assert len({kind.type for kind in problems.KINDS.values()}) == len(ERRORS)


@pytest.mark.parametrize("error", ERRORS)
def test_the_tree_at_the_top_of_the_file_draws_every_error(error: type[SeqserveError]) -> None:
    assert errors.__doc__ is not None
    assert f"- {error.__name__} " in errors.__doc__


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.UnknownModel("no such model"), 404, {}),
        (errors.Forbidden("not yours"), 403, {}),
        (errors.Unauthenticated("no key", refused=False), 401, {"www-authenticate": "Bearer"}),
        (errors.RateLimited("too much", retry_after=9), 429, {"retry-after": "9"}),
        (errors.NotReady("loading"), 503, {"retry-after": "2"}),
        (errors.Overloaded("full", retry_after=7), 503, {"retry-after": "7"}),
        (errors.DeadlineExceeded("late"), 504, {}),
        (errors.InvalidField("text", "expected less"), 422, {}),
    ],
)
@pytest.mark.parametrize(("path", "body"), [("/next-word", {"text": "a"}), ("/perplexity", {"text": "a"})])
@pytest.mark.anyio
async def test_an_error_of_the_model_is_told_with_its_status(
    served: FakeServed, error: SeqserveError, status: int, headers: dict[str, str], path: str, body: dict[str, object]
) -> None:
    async def failing(payload: object, deadline: float | None) -> object:
        raise error

    served.answering = failing
    async with connect(service(served)) as client:
        response = await client.post(path, json=body)
    reported = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert (reported["status"], reported["detail"]) == (status, str(error))
    assert reported["type"].startswith("/problems/")
    assert reported["title"]
    assert headers.items() <= response.headers.items()


@pytest.mark.anyio
async def test_an_unexpected_error_is_logged_under_the_request_id_and_not_told(
    served: FakeServed, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(payload: object, deadline: float | None) -> object:
        raise RuntimeError("the secret of the house")

    served.answering = failing
    async with connect(service(served)) as client:
        with caplog.at_level(logging.ERROR):
            response = await client.post("/next-word", json={"text": "a"}, headers={"X-Request-Id": "mine"})
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert response.headers["x-request-id"] == "mine"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "mine" in caplog.text
    assert "the secret of the house" in caplog.text
