"""The path prefix of a proxy, and the header of sessions."""

import logging

import pytest

from app.errors import SettingsError
from app.settings import Settings
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio
PATHS = ("/", "/web/main.js", "/docs", "/docs/files/swagger-ui.css", "/openapi.json", "/readyz", "/models/ptb")


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_is_served_with_the_prefix_and_without_it(served: FakeServed, path: str) -> None:
    async with connect(service(served, root_path="/team/seqserve")) as client:
        alone = await client.get(path)
        prefixed = await client.get(f"/team/seqserve{path}")
    assert (alone.status_code, prefixed.status_code) == (200, 200)
    assert prefixed.content == alone.content


@pytest.mark.parametrize(
    ("path", "status"), [("/seqserve2/livez", 404), ("/seqserve//livez", 404), ("/seqserve/seqserve/livez", 404)]
)
async def test_a_prefix_is_removed_once_and_as_a_whole(served: FakeServed, path: str, status: int) -> None:
    async with connect(service(served, root_path="/seqserve")) as client:
        assert (await client.get(path)).status_code == status


async def test_a_prefix_hides_no_scope(served: FakeServed) -> None:
    async with connect(service(served, root_path="/seqserve")) as client:
        response = await client.get("/seqserve/metrics", headers={"Host": "example.org"})
        answer = await client.post("/seqserve/next-word", json={"text": "a"})
    assert (response.status_code, answer.status_code) == (403, 200)


async def test_the_prefix_alone_is_redirected_to_the_page(served: FakeServed) -> None:
    async with connect(service(served, root_path="/seqserve")) as client:
        response = await client.get("/seqserve")
    assert (response.status_code, response.headers["location"]) == (308, "/seqserve/")


async def test_the_openapi_document_has_the_prefix_and_the_documentation_relative_addresses(served: FakeServed) -> None:
    async with connect(service(served, root_path="/seqserve")) as client:
        document = (await client.get("/openapi.json")).json()
        page = (await client.get("/docs")).text
    assert document["servers"] == [{"url": "/seqserve"}]
    assert "url: 'openapi.json'" in page
    assert '="/' not in page


@pytest.mark.parametrize("prefix", ["seqserve", "/seqserve/", "/", "/a b", "//a"])
def test_a_prefix_starts_with_a_slash_and_ends_with_none(prefix: str) -> None:
    with pytest.raises(SettingsError, match="SEQSERVE_ROOT_PATH"):
        Settings(root_path=prefix)


@pytest.mark.parametrize("body", [b'{"text": "a"}', b"nonsense"])
async def test_a_session_is_neither_logged_nor_answered(
    served: FakeServed, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    headers = {"X-Session-Id": "writer-7f3a", "Content-Type": "application/json"}
    with caplog.at_level(logging.DEBUG):
        async with connect(service(served)) as client:
            response = await client.post("/next-word", content=body, headers=headers)
            metrics = await client.get("/metrics")
    seen = [str(vars(record)) for record in caplog.records if record.name.startswith("app")]
    assert seen
    assert "writer-7f3a" not in "".join([*seen, response.text, str(response.headers), metrics.text])


async def test_every_prediction_documents_the_session(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        document = (await client.get("/openapi.json")).json()
        again = (await client.get("/openapi.json")).json()
    assert again == document
    named = {
        path
        for path, operations in document["paths"].items()
        if any(one["name"] == "X-Session-Id" for one in operations.get("post", {}).get("parameters", []))
    }
    assert {"/next-word", "/perplexity", "/digits", "/captions"} <= named
    assert "/models/{model}/activate" not in named
