"""Version rollouts under load at a real server: no request fails, and no answer mixes versions."""

import asyncio
import re
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
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.predictor import Resources, answer_all
from app.runtime.scoring import Score
from tests.e2e.conftest import serving

pytestmark = pytest.mark.anyio

CONNECTIONS = 6
SWAPS = 4
ANSWERS = 30  # of a version, awaited before the next rollout
LEAK = 800  # KiB, about: a version of `tiny` that is not released
ACTIVATE = "/models/tiny/activate"
PREPARED = 'seqserve_prepare_seconds_count{model="tiny"} 1.0'
TEXTS = ["the company said", "he said the market fell", "profits rose in new york and", "third-quarter prices", ""]
LINES = [f"the bank says {'profits rose ' * (n % 7)}shares fell" for n in range(40)]  # more than one batch
SCORED = {"texts": LINES, "per_token": True}
LONG = {"text": "the company said profits rose " * 12_000}  # many scheduling steps

Known = dict[str, dict[str, Any]]  # expected answers, by version and text


@pytest.fixture(scope="module")
def known(two_versions: Path) -> Known:
    """The answers of each version without other requests."""
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
    """Connections that send requests without a pause, and the outcomes."""

    client: httpx.AsyncClient
    known: Known
    answered: Counter[str] = field(default_factory=Counter)  # by version
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self, texts: Iterator[str]) -> None:
        """Send keystrokes over one connection, and a corpus after every twentieth."""
        while not self.stopping:
            for _ in range(20):
                text = next(texts)
                answer = await self._post("/next-word", {"text": text})
                found = [[one["text"], one["probability"], one["log_probability"]] for one in answer["suggestions"]]
                self._check(answer["version"], text, found)
            await self.score(SCORED, "scored")

    async def score(self, body: dict[str, Any], key: str) -> str:
        """Score texts and return the version that answered."""
        answer = await self._post("/perplexity", body)
        self._check(answer["version"], key, [score["log_likelihood"] for score in answer["results"]])
        version: str = answer["version"]
        return version

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = await self.client.post(path, json=body)
        if response.status_code != 200:
            self.failures.append(f"{path}: {response.status_code}: {response.text}")
        return response.raise_for_status().json()

    def _check(self, version: str, key: str, found: Any) -> None:
        self.answered[version] += 1
        if found != self.known[version][key]:
            self.failures.append(f"{version}: {key!r}: expected {self.known[version][key]}, found {found}")

    async def served_by(self, version: str) -> None:
        """Wait for ANSWERS more answers of this version."""
        target = self.answered[version] + ANSWERS
        async with asyncio.timeout(30):
            while self.answered[version] < target:
                await self.client.get("/readyz")

    async def activate(self, version: str) -> httpx.Response:
        """Activate a version; assert that the server is ready before and after."""
        assert (await self.client.get("/readyz")).status_code == 200
        response = await self.client.post(ACTIVATE, json={"version": version})
        assert (await self.client.get("/readyz")).status_code == 200
        return response


@asynccontextmanager
async def traffic(url: httpx.URL, known: Known) -> AsyncIterator[Traffic]:
    """Run traffic meanwhile and assert that no request fails."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.TaskGroup() as group:
        load = Traffic(client, known)
        for n in range(CONNECTIONS):
            group.create_task(load.run(cycle(TEXTS[n % len(TEXTS) :] + TEXTS[: n % len(TEXTS)])))
        try:
            await load.served_by("1")
            yield load
        finally:
            load.stopping = True
    assert load.failures == []


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return the threads and resident KiB of the process."""
    status = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()))
    return {name: int(status[name]) for name in ("Threads", "VmRSS")}


def closed(log: list[str]) -> int:
    """Return the number of former versions that the log reports as closed."""
    return sum("has ended" in line for line in log)


async def test_every_answer_matches_its_version_over_rollouts_under_load(store: Path, known: Known) -> None:
    log: list[str] = []
    with serving(store, log) as (client, _):
        async with traffic(client.base_url, known) as load:
            for n in range(SWAPS):
                version = "21"[n % 2]
                response = await load.activate(version)
                assert response.json() == {
                    "model": "tiny",
                    "version": version,
                    "previous": "12"[n % 2],
                    "persisted": True,
                    "reason": None,
                }
                await load.served_by(version)
            rejected = await load.activate("3")  # damaged
            assert (rejected.status_code, rejected.json()["type"]) == (409, "/problems/unservable")
            await load.served_by(version)
        exported = client.get("/metrics").text
    assert min(load.answered.values()) >= SWAPS / 2 * ANSWERS
    assert f'seqserve_swaps_total{{model="tiny",outcome="switched"}} {SWAPS}.0' in exported
    assert not re.search(r'seqserve_requests_total\{[^}]*status="5', exported)
    assert closed(log) == SWAPS
    assert bundles.current(store, "tiny") == "1"


async def test_under_load_a_long_text_is_scored_by_the_version_that_started_it(store: Path, known: Known) -> None:
    with serving(store) as (client, _):
        async with traffic(client.base_url, known) as load:
            scoring = asyncio.ensure_future(load.score(LONG, "long"))
            async with asyncio.timeout(30):
                while PREPARED not in (await load.client.get("/metrics")).text:  # the other texts need no thread
                    pass
            await load.activate("2")
            assert not scoring.done()
            await load.served_by("2")
            assert await scoring == "1"


async def test_former_versions_release_their_threads_and_memory(store: Path) -> None:
    log: list[str] = []
    with serving(store, log) as (client, process):

        async def swapped(times: int) -> dict[str, int]:
            """Return the memory of the process after further rollouts."""
            before = closed(log)
            for n in range(times):
                assert client.post(ACTIVATE, json={"version": "21"[n % 2]}).status_code == 200
                for text in TEXTS:
                    assert client.post("/next-word", json={"text": text}).status_code == 200
            await until(lambda: closed(log) == before + times)
            return memory(process)

        before, after = await swapped(10), await swapped(20)
    assert after["VmRSS"] - before["VmRSS"] < 20 * LEAK / 4
    assert after["Threads"] - before["Threads"] <= 2  # of the bounded pool in which rollouts run


async def until(condition: Callable[[], object]) -> None:
    """Poll until the condition is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (another process changes it)
            await asyncio.sleep(0.01)
