"""One person who types, and a probe, beside hostile loads on the same server."""

import pytest

from tests.bench.neighbours import LOADS, STORE, Measured, measure
from tests.e2e.conftest import serving

pytestmark = [pytest.mark.serial, pytest.mark.timeout(600)]

SECONDS = 2.0
TRIES = 3  # of a row: a fault repeats, the noise of a busy machine seldom does
KEYSTROKE_MS, PROBE_MS = 100, 250  # more than alone
PEAK_MB = 700  # of the server's processes together


@pytest.fixture(scope="module")
def alone() -> Measured:
    """The neighbours without a load, each time the slowest of several tries."""
    with serving(STORE) as (client, process):
        tries = [measure(0, client.base_url.port or 0, process.pid, SECONDS) for _ in range(TRIES)]
    return Measured("nothing", max(one.keystroke_ms for one in tries), max(one.probe_ms for one in tries))


@pytest.mark.parametrize("load", range(1, len(LOADS)), ids=[load.name for load in LOADS[1:]])
def test_a_load_hurts_no_neighbour(load: int, alone: Measured) -> None:
    for _ in range(TRIES):
        with serving(STORE) as (client, process):
            found = measure(load, client.base_url.port or 0, process.pid, SECONDS)
        assert found.refused == 0
        assert found.peak_mb <= PEAK_MB
        if found.keystroke_ms <= alone.keystroke_ms + KEYSTROKE_MS and found.probe_ms <= alone.probe_ms + PROBE_MS:
            return
    pytest.fail(f"alone {alone}, beside the load {found}")
