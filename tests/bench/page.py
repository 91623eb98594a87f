"""Benchmark the page: latency from a key to the paint of its suggestions, in a real browser.

    python -m tests.bench.page

The last line is JSON. Measure on an idle machine.
"""

import json
import statistics
from pathlib import Path

from tests.e2e.browser import keystrokes, launched
from tests.e2e.conftest import serving

STORE = Path("models_store")
TEXT = (
    "the company said it expects third-quarter net income to rise from a year earlier but analysts said the stock "
    "market fell because investors are worried about interest rates and the dollar in new york t"
)  # 200 keys
WARM = 20  # keys before the measured ones


def main() -> None:
    """Run the benchmark and print the results."""
    with serving(STORE) as (client, _), launched() as browser, browser.new_page() as page:
        page.goto(str(client.base_url))
        page.locator("#view-write[data-ready]").wait_for()
        keystrokes(page, TEXT[:WARM])
        page.locator("#draft-clear").click()
        taken = sorted(keystrokes(page, TEXT))
    results = {
        "keys": len(taken),
        "median_ms": statistics.median(taken),
        "p95_ms": taken[round(0.95 * len(taken)) - 1],
        "most_ms": taken[-1],
    }
    for name, value in results.items():
        print(f"{name:12}{value:10.1f}")
    print(json.dumps({"page": results}))


if __name__ == "__main__":
    main()
