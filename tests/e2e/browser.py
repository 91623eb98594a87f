"""A real browser for the tests of the page: Chromium or Chrome on the PATH."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FOUND: Final = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS: Final = (
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Resolves one frame after the response-time line has changed, when the suggestions are painted.
EXPECT: Final = """() => {
    const line = document.getElementById("write-time");
    window.shown = new Promise((resolve) => {
        let pressed = 0;
        addEventListener("keydown", () => (pressed = performance.now()), { once: true, capture: true });
        const changes = new MutationObserver(() => {
            changes.disconnect();
            requestAnimationFrame(() => resolve(performance.now() - pressed));
        });
        changes.observe(line, { childList: true });
    });
}"""


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser. The thread has a running event loop meanwhile, so asyncio.run can't be called."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=list(FLAGS))
        yield browser
        browser.close()


def keystrokes(page: Page, text: str) -> list[float]:
    """Type `text` into Write; return the milliseconds from each key to the paint of its suggestions.

    Each key waits for the answer to the previous one.
    """
    page.locator("#draft").focus()
    latencies = []
    for character in text:
        page.evaluate(EXPECT)
        page.keyboard.press(character if character != " " else "Space")
        latencies.append(page.evaluate("() => window.shown"))
    return latencies
