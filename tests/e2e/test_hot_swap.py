"""Models are exchanged under a real server's traffic: no request fails, and none is answered by a mixture."""

import asyncio
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import bundle as bundles
from app.runtime.families.language_model import LanguageModelPredictor, Score, Suggest
from app.runtime.scheduler import Resources, answer_all
from tests.e2e.conftest import serving

pytestmark = pytest.mark.anyio

CONNECTIONS = 6
SWAPS = 10
ANSWERS = 30  # of a version are waited for before the next change
LEAK = 800  # KiB, about: what a version of `tiny` takes that is not let go
ACTIVATE = "/models/tiny/activate"
TEXTS = ["the company said", "he said the market fell", "profits rose in new york and", "third-quarter prices", ""]
LINES = [f"the bank says {'profits rose ' * (place % 7)}shares fell" for place in range(40)]  # more than run at once
SCORED = {"texts": LINES, "per_token": True}
LONG = {"text": "the company said profits rose " * 12_000}  # many turns of the model

Known = dict[str, dict[str, Any]]  # by version, by the text asked: what is compared of its answer


@pytest.fixture
def store(two_versions: Path, tmp_path: Path) -> Path:
    """A store of its own for this test: `tiny` 1, which is current, and 2."""
    return Path(shutil.copytree(two_versions, tmp_path / "store"))


@pytest.fixture(scope="module")
def known(two_versions: Path) -> Known:
    """What each version answers, alone with its requests."""
    return {version: _answers(two_versions / "tiny" / version) for version in ("1", "2")}


def _answers(folder: Path) -> dict[str, Any]:
    predictor = LanguageModelPredictor.open(bundles.read(folder), "int8", Resources())
    suggested = answer_all(predictor, [predictor.prepare(Suggest(text)) for text in TEXTS])
    scored = answer_all(predictor, [predictor.prepare(Score(line)) for line in [*LINES, LONG["text"]]])
    return {
        **{
            text: [[one.text, one.probability, one.log_probability] for one in answer.suggestions]
            for text, answer in zip(TEXTS, suggested, strict=True)
        },
        "scored": [score.log_likelihood for score in scored[:-1]],
        "long": [scored[-1].log_likelihood],
    }


@dataclass
class Traffic:
    """Connections that ask without a pause, and what became of their requests."""

    client: httpx.AsyncClient
    known: Known
    answered: Counter[str] = field(default_factory=Counter)  # by version
    faults: list[str] = field(default_factory=list)
    ending: bool = False

    async def ask(self, texts: Iterator[str]) -> None:
        """One connection's requests: a keystroke after another, and now and then a corpus."""
        while not self.ending:
            for _ in range(20):
                text = next(texts)
                told = await self._answer("/next-word", {"text": text})
                found = [[one["text"], one["probability"], one["log_probability"]] for one in told["suggestions"]]
                self._judge(told["version"], text, found)
            await self.score(SCORED, "scored")

    async def score(self, body: dict[str, Any], asked: str) -> str:
        """Have texts scored; the version that did."""
        told = await self._answer("/perplexity", body)
        self._judge(told["version"], asked, [score["log_likelihood"] for score in told["results"]])
        version: str = told["version"]
        return version

    async def _answer(self, path: str, body: dict[str, Any]) -> Any:
        response = await self.client.post(path, json=body)
        if response.status_code != 200:
            self.faults.append(f"{path}: {response.status_code}: {response.text}")
        return response.raise_for_status().json()

    def _judge(self, version: str, asked: str, found: Any) -> None:
        self.answered[version] += 1
        if found != self.known[version][asked]:
            self.faults.append(f"{version}: {asked!r}: expected {self.known[version][asked]}, found {found}")

    async def served_by(self, version: str) -> None:
        """Wait until ANSWERS more are given by this version."""
        enough = self.answered[version] + ANSWERS
        async with asyncio.timeout(30):
            while self.answered[version] < enough:
                await self.client.get("/readyz")

    async def activate(self, version: str) -> httpx.Response:
        """Ask for a change; the service is ready before and after."""
        assert (await self.client.get("/readyz")).status_code == 200
        response = await self.client.post(ACTIVATE, json={"version": version})
        assert (await self.client.get("/readyz")).status_code == 200
        return response


@asynccontextmanager
async def traffic(url: httpx.URL, known: Known) -> AsyncIterator[Traffic]:
    """Traffic while this lasts, and not a fault in it."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.TaskGroup() as group:
        load = Traffic(client, known)
        for place in range(CONNECTIONS):
            group.create_task(load.ask(cycle(TEXTS[place % len(TEXTS) :] + TEXTS[: place % len(TEXTS)])))
        try:
            await load.served_by("1")
            yield load
        finally:
            load.ending = True
    assert load.faults == []


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """The process's threads and resident KiB."""
    told = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()))
    return {name: int(told[name]) for name in ("Threads", "VmRSS")}


def ended(log: list[str]) -> int:
    """How many former versions the log tells to have ended."""
    return sum("has ended" in line for line in log)


async def test_under_traffic_two_versions_are_exchanged_ten_times_and_every_answer_is_of_the_one_it_names(
    store: Path, known: Known
) -> None:
    log: list[str] = []
    with serving(store, log) as (client, _):
        async with traffic(client.base_url, known) as load:
            for place in range(SWAPS):
                version = "21"[place % 2]
                response = await load.activate(version)
                assert response.json() == {
                    "model": "tiny",
                    "version": version,
                    "previous": "12"[place % 2],
                    "persisted": True,
                    "reason": None,
                }
                await load.served_by(version)
        figures = client.get("/metrics").text
    assert min(load.answered.values()) >= SWAPS / 2 * ANSWERS
    assert f'seqserve_swaps_total{{model="tiny",outcome="switched"}} {SWAPS}.0' in figures
    assert not re.search(r'seqserve_requests_total\{[^}]*status="5', figures)
    assert ended(log) == SWAPS
    assert bundles.current(store, "tiny") == "1"


async def test_under_traffic_a_text_is_scored_to_its_end_by_the_version_that_began_it(
    store: Path, known: Known
) -> None:
    with serving(store) as (client, _):
        async with traffic(client.base_url, known) as load:
            scoring = asyncio.ensure_future(load.score(LONG, "long"))
            await load.served_by("1")
            await load.activate("2")
            assert not scoring.done()
            await load.served_by("2")
            assert await scoring == "1"


async def test_under_traffic_a_bad_version_is_refused_and_sighup_brings_a_good_one(store: Path, known: Known) -> None:
    weights = store / "tiny" / "2" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    log: list[str] = []
    with serving(store, log) as (client, process):
        async with traffic(client.base_url, known) as load:
            refused = await load.activate("2")
            assert (refused.status_code, refused.json()["type"]) == (409, "/problems/unservable")
            assert (await load.activate("3")).status_code == 404
            bundles.activate(store, "tiny", "2")
            process.send_signal(signal.SIGHUP)
            await until(lambda: any("tiny: rejected" in line for line in log))
            await load.served_by("1")
            assert load.answered["2"] == 0
            weights.write_bytes(whole)
            process.send_signal(signal.SIGHUP)
            await load.served_by("2")
            assert (await load.client.get("/readyz")).status_code == 200


async def test_former_versions_leave_neither_threads_nor_memory_behind(store: Path) -> None:
    log: list[str] = []
    with serving(store, log) as (client, process):

        async def swapped(times: int) -> dict[str, int]:
            """What the process takes after so many more changes."""
            before = ended(log)
            for place in range(times):
                assert client.post(ACTIVATE, json={"version": "21"[place % 2]}).status_code == 200
                for text in TEXTS:
                    assert client.post("/next-word", json={"text": text}).status_code == 200
            await until(lambda: ended(log) == before + times)
            return memory(process)

        before, after = await swapped(10), await swapped(20)
    assert after["VmRSS"] - before["VmRSS"] < 20 * LEAK / 4
    assert after["Threads"] - before["Threads"] <= 2  # of the pool that changes run in, which has a bound of its own


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (another process makes it hold)
            await asyncio.sleep(0.01)
