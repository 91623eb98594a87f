"""The page's files, as they are sent."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.api.web.page import FOLDER
from tests.api.conftest import FakeServed, connect, service
from tests.api.http.test_authorization import bearer, line

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG image"
NAMES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture
def with_image(served: FakeServed) -> FakeServed:
    """A model with a image."""
    entry = served.manifest.files["step.onnx"].model_copy(update={"sha256": "a" * 64, "bytes": len(PNG)})
    served.manifest.files["curves.png"] = entry
    (served.bundle.folder / "curves.png").write_bytes(PNG)
    return served


@pytest.mark.parametrize("name", NAMES)
async def test_each_file_has_its_type(shared: FastAPI, name: str) -> None:
    async with connect(shared) as client:
        response = await client.get(f"/web/{name}")
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"].startswith(TYPES[Path(name).suffix])


async def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.get("/")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"


@pytest.mark.parametrize("path", ["/", "/web/main.js", "/models/ptb/files/curves.png"])
async def test_a_client_with_the_current_file_gets_304_without_content(with_image: FakeServed, path: str) -> None:
    async with connect(service(with_image)) as client:
        first = await client.get(path)
        etag = first.headers["etag"]
        again = await client.get(path, headers={"If-None-Match": f'"other", W/{etag}'})
        other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("path", ["/", "/web/style.css", "/models/ptb/files/curves.png"])
async def test_head_has_the_headers_alone(with_image: FakeServed, path: str) -> None:
    async with connect(service(with_image)) as client:
        whole, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "etag"):
        assert head.headers[name] == whole.headers[name]


async def test_an_image_of_a_card_has_its_media_type(with_image: FakeServed) -> None:
    async with connect(service(with_image)) as client:
        response = await client.get("/models/ptb/files/curves.png")
    assert (response.status_code, response.content) == (200, PNG)
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("path", ["/web/other.js", "/web/..%2Fpage.py", "/web/"])
async def test_no_other_file_is_part_of_the_page(shared: FastAPI, path: str) -> None:
    async with connect(shared) as client:
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("path", ["ptb/files/step.onnx", "ptb/files/manifest.json", "ptb/files/a.png", "x/files/a.png"])
async def test_nothing_of_a_bundle_but_its_images_is_sent(with_image: FakeServed, path: str) -> None:
    async with connect(service(with_image)) as client:
        response = await client.get(f"/models/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_page_recognises_an_expired_key_by_the_servers_message(served: FakeServed, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(line("late", "predict", "2020-01-01"))
    async with connect(service(served, api_keys_file=file)) as client:
        detail = (await client.get("/models", headers=bearer("late"))).json()["detail"]
    assert f'"{detail}"' in (FOLDER / "key.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_another_host(name: str) -> None:
    named = re.findall(r"https?://[^\s\"')]+", (FOLDER / name).read_text(encoding="utf-8"))
    assert set(named) <= {"http://www.w3.org/2000/svg"}  # a namespace, which nobody fetches
