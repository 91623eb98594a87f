"""The OpenAPI document promises what the service does."""

import json
import re
from typing import Any

import pytest
from pydantic import TypeAdapter

from app.api.dialects import DIALECTS
from app.api.http import problems
from app.api.native.schemas import NextWord, Perplexity
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio


@pytest.fixture
async def document(served: FakeServed) -> dict[str, Any]:
    async with connect(service(served)) as client:
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


async def test_every_schema_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    assert not [name for name in document["components"]["schemas"] if "__" in name]  # two classes of one name


async def test_every_route_of_the_contract_is_documented(document: dict[str, Any]) -> None:
    dialects = [dialect.requests for dialect in DIALECTS.values() if dialect.requests]
    native = {
        path
        for path, operations in document["paths"].items()
        for method in operations
        if not any(requests.fullmatch(f"{method.upper()} {path}") for requests in dialects)
    }
    assert native == {
        "/next-word",
        "/perplexity",
        "/digits",
        "/captions",
        "/livez",
        "/readyz",
        "/metrics",
        "/models",
        "/models/{model}",
        "/models/{model}/activate",
        "/models/{model}/files/{name}",
    }


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert wanted <= set(document["components"]["schemas"])


async def test_every_error_is_documented_in_the_format_of_its_dialect(document: dict[str, Any]) -> None:
    formats = [(dialect.requests, dialect.errors) for dialect in DIALECTS.values() if dialect.requests]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            errors = problems.selected(formats, method.upper(), path)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == [errors.media_type]


@pytest.mark.parametrize("path", ["/next-word", "/perplexity", "/digits", "/captions"])
async def test_a_route_documents_all_its_statuses(document: dict[str, Any], path: str) -> None:
    documented = set(document["paths"][path]["post"]["responses"])
    assert documented == {"200", "400", "401", "403", "404", "413", "415", "422", "429", "503", "504"}


@pytest.mark.parametrize(("path", "most"), [("/digits", 32), ("/captions", 8)])
async def test_images_are_documented_as_a_form_and_as_a_raw_body(
    document: dict[str, Any], path: str, most: int
) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    form, raw = (body["content"][media]["schema"] for media in ("multipart/form-data", "image/*"))
    images = form["properties"]["image"]
    assert body["required"]
    assert (form["required"], images["type"], images["minItems"], images["maxItems"]) == (["image"], "array", 1, most)
    assert images["items"] == raw == {"type": "string", "contentMediaType": "application/octet-stream"}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/digits", {"framed", "number", "model", "X-Request-Timeout", "X-Session-Id"}),
        (
            "/captions",
            {
                "beam",
                "alternatives",
                "tags",
                "people",
                "attention",
                "threshold",
                "model",
                "X-Request-Timeout",
                "X-Session-Id",
            },
        ),
    ],
)
async def test_every_parameter_is_documented(document: dict[str, Any], path: str, names: set[str]) -> None:
    parameters = document["paths"][path]["post"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == names
    assert all(parameter["description"] or parameter["schema"]["description"] for parameter in parameters)


async def test_captions_are_documented_as_json_and_as_events(document: dict[str, Any]) -> None:
    content = document["paths"]["/captions"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize("schema", [NextWord, Perplexity])
async def test_examples_are_taken(document: dict[str, Any], schema: type) -> None:
    examples = document["components"]["schemas"][schema.__name__]["examples"]
    assert examples
    assert all(TypeAdapter(schema).validate_python(example) for example in examples)
