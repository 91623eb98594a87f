"""A real browser, for the page: Debian's Chromium or whichever stands on the PATH."""

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
# Resolves when what was measured last is on the screen: a frame after the line that tells the time has changed.
EXPECT: Final = """() => {
    const line = document.getElementById("write-time");
    window.shown = new Promise((tell) => {
        let pressed = 0;
        addEventListener("keydown", () => (pressed = performance.now()), { once: true, capture: true });
        const changes = new MutationObserver(() => {
            changes.disconnect();
            requestAnimationFrame(() => tell(performance.now() - pressed));
        });
        changes.observe(line, { childList: true });
    });
}"""


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser. While it runs, the thread has a running event loop: asyncio.run can't be called in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=list(FLAGS))
        yield browser
        browser.close()


def keystrokes(page: Page, text: str) -> list[float]:
    """Milliseconds from each key of `text`, typed into Write, until its suggestions are on the screen.

    A key is pressed when the answer to the last one is there.
    """
    page.locator("#draft").focus()
    taken = []
    for character in text:
        page.evaluate(EXPECT)
        page.keyboard.press(character if character != " " else "Space")
        taken.append(page.evaluate("() => window.shown"))
    return taken
