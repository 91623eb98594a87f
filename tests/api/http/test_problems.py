"""Every error has a status, and no error says more than it should."""

import hashlib
import inspect
import json
import logging
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from app import errors
from app.api.dialects import DIALECTS
from app.api.http import problems
from app.api.http.dialect import BodyLimits
from app.errors import SeqserveError
from tests.api.conftest import FakeServed, connect, service

EXAMPLES: dict[type[SeqserveError], SeqserveError] = {
    errors.InvalidField: errors.InvalidField("text", "expected less"),
    errors.Unauthenticated: errors.Unauthenticated("no key", invalid=False),
    errors.RateLimited: errors.RateLimited("too much", retry_after=9),
}
UNKNOWN = {"openai": "/models/ptb/v1/audio", "oip": "/v2/trace/setting"}  # a path without a route, by dialect
ERRORS = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found is not SeqserveError]


def test_every_error_has_its_own_status() -> None:
    assert set(problems.KINDS) == set(ERRORS)
    assert len({kind.type for kind in problems.KINDS.values()}) == len(ERRORS)


@pytest.mark.parametrize("error", ERRORS)
def test_the_tree_at_the_top_of_the_file_draws_every_error(error: type[SeqserveError]) -> None:
    assert errors.__doc__ is not None
    assert f"- {error.__name__} " in errors.__doc__


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_error_has_a_status_and_a_body_in_every_dialect(name: str, error: type[SeqserveError]) -> None:
    dialect = DIALECTS[name]
    response = dialect.errors.respond(problems.of(EXAMPLES.get(error) or error("it is wrong")))
    body: object = TypeAdapter(dialect.errors.schema).validate_json(bytes(response.body))
    assert (response.status_code >= 400, response.media_type) == (True, dialect.errors.media_type)
    assert str(EXAMPLES.get(error, "it is wrong")) in json.dumps(body)


@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if dialect.requests])
@pytest.mark.anyio
async def test_errors_of_middleware_have_the_format_of_the_dialect(
    served: FakeServed, tmp_path: Path, name: str
) -> None:
    dialect = DIALECTS[name]
    keys = tmp_path / "keys"
    keys.write_text(f"reader predict - sha256:{hashlib.sha256(b'secret').hexdigest()}")
    found = {}
    async with connect(service(served, api_keys_file=keys)) as client:
        if name in UNKNOWN:
            found[404] = await client.get(UNKNOWN[name])
        for route in dialect.routes(BodyLimits(1, 1)):
            for sent in getattr(route, "methods", None) or ():
                if getattr(route, "key_scope", None):
                    assert isinstance(route, APIRoute)
                    found[401] = await client.request(sent, re.sub("{.*?}", "x", route.path))
    for status, response in found.items():
        assert response.status_code == status
        assert response.headers["content-type"] == dialect.errors.media_type
        TypeAdapter(dialect.errors.schema).validate_json(response.content)


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.UnknownModel("no such model"), 404, {}),
        (errors.Forbidden("not yours"), 403, {}),
        (errors.Unauthenticated("no key", invalid=False), 401, {"www-authenticate": "Bearer"}),
        (errors.RateLimited("too much", retry_after=9), 429, {"retry-after": "9"}),
        (errors.NotReady("loading"), 503, {"retry-after": "2"}),
        (errors.Overloaded("full", retry_after=7), 503, {"retry-after": "7"}),
        (errors.DeadlineExceeded("late"), 504, {}),
        (errors.InvalidField("text", "expected less"), 422, {}),
    ],
)
@pytest.mark.parametrize(("path", "body"), [("/next-word", {"text": "a"}), ("/perplexity", {"text": "a"})])
@pytest.mark.anyio
async def test_an_error_of_the_model_has_its_status(
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
async def test_an_unexpected_error_is_logged_under_the_request_id_and_not_shown(
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
