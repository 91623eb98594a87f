"""The OpenAPI document promises what the service does."""

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel

from app.api.schemas import NextWord, Perplexity
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio


@pytest.fixture
async def document(served: FakeServed) -> dict[str, Any]:
    async with connect(service(served)) as client:
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


async def test_every_route_of_the_contract_is_documented(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {
        "/next-word",
        "/perplexity",
        "/livez",
        "/readyz",
        "/metrics",
        "/models",
        "/models/{model}",
    }


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert wanted <= set(document["components"]["schemas"])


async def test_every_problem_is_documented_as_one(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]


@pytest.mark.parametrize("path", ["/next-word", "/perplexity"])
async def test_a_route_documents_all_its_statuses(document: dict[str, Any], path: str) -> None:
    documented = set(document["paths"][path]["post"]["responses"])
    assert documented == {"200", "400", "404", "413", "415", "422", "503", "504"}


@pytest.mark.parametrize("schema", [NextWord, Perplexity])
async def test_examples_are_taken(document: dict[str, Any], schema: type[BaseModel]) -> None:
    examples = document["components"]["schemas"][schema.__name__]["examples"]
    assert examples
    assert all(schema.model_validate(example) for example in examples)
