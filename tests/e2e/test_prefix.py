"""The page and the documentation under a path prefix, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser import FOUND, NAMES, launched
from tests.e2e.conftest import serving

STORE = Path(__file__).parents[2] / "models_store"
PREFIX = "/team/seqserve"
TIMEOUT_MS = 30_000

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"there is no browser: none of {', '.join(NAMES)} is on the PATH")


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[Page, list[str]]]:
    """A page under the prefix, and the paths of its requests; any other path is a 404."""
    expect.set_options(timeout=TIMEOUT_MS)
    with serving(STORE, SEQSERVE_ROOT_PATH=PREFIX) as (client, _), launched() as browser:
        page = browser.new_page(base_url=str(client.base_url))
        paths: list[str] = []
        page.on("request", lambda request: paths.append(urlsplit(request.url).path))
        page.on("response", lambda response: paths.extend([] if response.status < 400 else [f"failed: {response.url}"]))
        yield page, paths


def test_the_page_works_under_a_prefix(pages: tuple[Page, list[str]]) -> None:
    page, paths = pages
    with page.expect_request(f"**{PREFIX}/next-word") as sent:
        page.goto(PREFIX)
        page.locator("#draft").fill("The company said it ")
    assert len(sent.value.headers["x-session-id"]) == 32
    expect(page.locator("#chips button").first).to_be_visible()
    page.goto(f"{PREFIX}/#models")
    page.reload()
    expect(page.locator("#cards img").first).to_be_visible()
    with page.expect_request(f"**{PREFIX}/next-word") as later:
        page.goto(f"{PREFIX}/#write")
        page.locator("#draft").fill("The company said they ")
    assert later.value.headers["x-session-id"] == sent.value.headers["x-session-id"]
    assert [path for path in paths if not path.startswith(f"{PREFIX}/") and path != PREFIX] == []


def test_the_documentation_sends_its_requests_under_the_prefix(pages: tuple[Page, list[str]]) -> None:
    page, paths = pages
    paths.clear()
    page.goto(f"{PREFIX}/")
    page.get_by_role("link", name="API documentation").click()
    page.locator("#operations-operations-livez_livez_get").click()
    page.get_by_role("button", name="Try it out").click()
    with page.expect_response(f"**{PREFIX}/livez") as answered:
        page.get_by_role("button", name="Execute").click()
    assert answered.value.ok
    assert [path for path in paths if not path.startswith(f"{PREFIX}/")] == []
