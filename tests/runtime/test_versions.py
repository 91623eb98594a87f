"""Version exchange under traffic."""

import asyncio
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from app import bundle as bundles
from app.errors import BundleError, NotReady, SeqserveError, UnknownModel, UnknownVersion
from app.runtime.families.language_model import LanguageModelPredictor, Suggest, Suggestion
from app.runtime.metrics import Metrics
from app.runtime.predictor import Resources, answer_all
from app.runtime.registry import Registry, Served
from app.runtime.versions import Activated, activate, reload, save, watch
from tests.conftest import flip_a_bit

pytestmark = pytest.mark.anyio

REQUEST = Suggest("the company said", top_k=5)
LONG = Suggest("the company said profits rose " * 100)  # many steps


@pytest.fixture(scope="session")
def answers(two_versions: Path) -> dict[str, list[Suggestion]]:
    """The answer of each version to REQUEST."""
    found = {version: bundles.read(two_versions / "tiny" / version) for version in ("1", "2")}
    opened = {version: LanguageModelPredictor.open(bundle, "int8", Resources()) for version, bundle in found.items()}
    return {version: answer_all(one, [one.prepare(REQUEST)])[0].suggestions for version, one in opened.items()}


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def registry(store: Path, metrics: CollectorRegistry) -> AsyncIterator[Registry]:
    registry = load(store, metrics)
    yield registry
    await registry.close()


def load(store: Path, metrics: CollectorRegistry) -> Registry:
    return Registry(store, threads=1, queue_size=64, batch_size=4, cache_bytes=1 << 20, metrics=Metrics(metrics)).load()


def tiny(registry: Registry) -> Served:
    return registry.get("tiny", "language_model")


async def answered(registry: Registry) -> list[Suggestion]:
    found: list[Suggestion] = (await tiny(registry).answer(REQUEST)).suggestions
    return found


async def until(condition: Callable[[], object]) -> None:
    """Yield to other tasks until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (the end of a thread or by a collection sets no event)
            await asyncio.sleep(0)


def inference_threads() -> int:
    return sum(thread.name == "inference-tiny" for thread in threading.enumerate())


async def until_closed(served: Served) -> None:
    """Send requests until one is rejected."""
    async with asyncio.timeout(30):
        while True:
            await served.answer(REQUEST)


@asynccontextmanager
async def watching(registry: Registry) -> AsyncIterator[list[str]]:
    """Watch CURRENT without pauses meanwhile; the list grows with every look."""
    looks, models = list[str](), bundles.models

    def counted(store: Path) -> list[str]:
        looks.append(store.name)
        return models(store)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "models", counted)
        task = asyncio.ensure_future(watch(registry, interval_s=0))
        yield looks
        task.cancel()
        await asyncio.wait((task,))


def refuse(*_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def change(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest, and its checksum."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "manifest.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  manifest.json\n")


def unlist_the_probe(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={name: entry for name, entry in files.items() if name != "probe.json"})


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "weights.safetensors"),
    "another family": lambda folder: change(folder, family="digits"),
    "another vocabulary": lambda folder: change(folder, vocabulary_sha256="0" * 64),
    "another name": lambda folder: change(folder, version="3"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no probe": unlist_the_probe,
}


def test_the_versions_of_these_tests_give_different_answers(answers: dict[str, list[Suggestion]]) -> None:
    assert answers["1"] != answers["2"]


async def test_a_version_that_is_activated_answers_from_then_on_and_after_a_restart(
    registry: Registry, store: Path, answers: dict[str, list[Suggestion]]
) -> None:
    assert await answered(registry) == answers["1"]
    assert await activate(registry, "tiny", "2") == Activated("tiny", "2", "1", None)
    assert (tiny(registry).version, await answered(registry)) == ("2", answers["2"])
    assert bundles.current(store, "tiny") == "2"
    assert await activate(registry, "tiny", "1") == Activated("tiny", "1", "2", None)
    assert await answered(registry) == answers["1"]
    assert bundles.current(store, "tiny") == "1"


async def test_activating_the_served_version_only_repairs_current(registry: Registry, store: Path) -> None:
    serving = tiny(registry)
    bundles.activate(store, "tiny", "2")
    assert await activate(registry, "tiny", "1") == Activated("tiny", "1", "1", None)
    assert tiny(registry) is serving
    assert bundles.current(store, "tiny") == "1"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_version_is_rejected_and_the_old_one_goes_on(
    registry: Registry, store: Path, damage: Callable[[Path], None], answers: dict[str, list[Suggestion]]
) -> None:
    damage(store / "tiny" / "2")
    with pytest.raises(BundleError, match="tiny/2"):
        await activate(registry, "tiny", "2")
    assert (await answered(registry), registry.rejected) == (answers["1"], {})
    assert bundles.current(store, "tiny") == "1"


async def test_a_version_of_another_family_is_rejected_even_if_it_is_sound(registry: Registry, store: Path) -> None:
    change(store / "tiny" / "2", family="captions")
    with pytest.raises(BundleError, match="family: expected language_model, as served, found captions"):
        await activate(registry, "tiny", "2")


@pytest.mark.parametrize(
    ("name", "version", "error"),
    [
        ("tiny", "3", UnknownVersion),
        ("tiny", "../1", UnknownVersion),
        ("tiny", "", UnknownVersion),
        ("other", "1", UnknownModel),
        ("../store/tiny", "1", UnknownModel),
        ("\ud800", "1", UnknownModel),
    ],
)
async def test_an_unknown_model_or_version_raises_and_adds_no_metric(
    registry: Registry, metrics: CollectorRegistry, name: str, version: str, error: type[SeqserveError]
) -> None:
    with pytest.raises(error, match=r"available: (1, 2|tiny)"):
        await activate(registry, name, version)
    assert tiny(registry).version == "1"
    samples = [sample for metric in metrics.collect() for sample in metric.samples]
    swaps = [sample for sample in samples if sample.name == "seqserve_swaps_total"]
    assert {(sample.labels["model"], sample.value) for sample in swaps} == {("tiny", 0.0)}


async def test_a_request_finishes_with_the_version_that_it_started_with(
    registry: Registry, answers: dict[str, list[Suggestion]]
) -> None:
    with tiny(registry) as former:
        waiting = [asyncio.ensure_future(former.answer(one)) for one in (LONG, *[REQUEST] * 20)]
        await asyncio.sleep(0)
        await activate(registry, "tiny", "2")
        assert [answer.suggestions for answer in (await asyncio.gather(*waiting))[1:]] == [answers["1"]] * 20
        assert (await former.answer(REQUEST)).suggestions == answers["1"]  # as for the next of many texts
    assert await answered(registry) == answers["2"]


async def test_a_replaced_version_closes_and_frees_its_memory_with_its_last_lease(registry: Registry) -> None:
    threads = inference_threads()
    former = tiny(registry)
    predictor = weakref.ref(former.predictor)
    with former, former:
        with former:
            await activate(registry, "tiny", "2")
        await former.answer(REQUEST)
        assert inference_threads() == threads + 1
    with pytest.raises(NotReady, match="tiny: is shutting down"):
        await until_closed(former)
    del former
    await until(lambda: inference_threads() == threads and predictor() is None)


async def test_garbage_does_not_keep_a_replaced_version(registry: Registry) -> None:
    predictor = weakref.ref(tiny(registry).predictor)
    garbage: list[object] = [tiny(registry)]
    garbage.append(garbage)  # as an error and its traceback hold each other
    del garbage
    await activate(registry, "tiny", "2")
    await until(lambda: predictor() is None)


async def test_a_replaced_version_that_is_leased_still_ends_with_the_registry(store: Path) -> None:
    registry = load(store, CollectorRegistry())
    with tiny(registry) as former:
        threads = inference_threads()
        await activate(registry, "tiny", "2")
        await registry.close()
        assert inference_threads() == threads - 1
        with pytest.raises(NotReady, match="tiny: is shutting down"):
            await former.answer(REQUEST)


async def test_a_changed_current_is_served(
    registry: Registry, store: Path, answers: dict[str, list[Suggestion]]
) -> None:
    async with watching(registry):
        bundles.activate(store, "tiny", "2")
        await until(lambda: tiny(registry).version == "2")
        assert await answered(registry) == answers["2"]
        shutil.copytree(store / "tiny", store / "new")
        for version in ("1", "2"):
            change(store / "new" / version, model="new")
        await until(lambda: registry.serving("new") == "2")


async def test_a_change_to_a_bad_version_is_logged_once_and_the_next_one_is_served(
    registry: Registry, store: Path, metrics: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(store / "tiny" / "2", store / "tiny" / "3")
    change(store / "tiny" / "3", version="3")
    flip_a_bit(store / "tiny" / "3" / "weights.safetensors")
    bad = {"model": "tiny", "outcome": "refused"}
    async with watching(registry) as looks:
        bundles.activate(store, "tiny", "3")
        await until(lambda: metrics.get_sample_value("seqserve_swaps_total", bad) == 1)
        seen = len(looks)
        await until(lambda: len(looks) > seen + 2)
        (store / "tiny" / "CURRENT").write_text("nonsense")
        await until(lambda: "nonsense" in caplog.text)
        assert tiny(registry).version == "1"
        bundles.activate(store, "tiny", "2")
        await until(lambda: tiny(registry).version == "2")
    assert caplog.text.count("weights.safetensors: expected sha256") == 1


async def test_an_activation_that_could_not_be_written_is_not_undone(
    registry: Registry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(registry) as looks:
        monkeypatch.setattr(bundles, "activate", refuse)
        await activate(registry, "tiny", "2")
        seen = len(looks)
        await until(lambda: len(looks) > seen + 2)
    assert (tiny(registry).version, bundles.current(store, "tiny")) == ("2", "1")


async def test_one_of_several_workers_activates_nothing_that_the_others_could_not_follow(
    registry: Registry, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "activate", refuse)
    registry.workers = 2
    with pytest.raises(
        BundleError, match=r"the other workers could not follow: .*CURRENT: can't be written: Read-only"
    ):
        await activate(registry, "tiny", "2")
    assert tiny(registry).version == "1"


async def test_concurrent_changes_run_one_after_the_other(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    load, started, go = registry.load_version, list[str](), threading.Event()

    def slow(name: str, version: str) -> Any:
        started.append(version)
        go.wait()
        return load(name, version)

    monkeypatch.setattr(registry, "load_version", slow)
    both = asyncio.gather(activate(registry, "tiny", "2"), activate(registry, "tiny", "1"))
    await until(lambda: started)
    assert (tiny(registry).version, started) == ("1", ["2"])
    go.set()
    assert [(one.previous, one.version) for one in await both] == [("1", "2"), ("2", "1")]
    assert started == ["2", "1"]


async def test_the_old_version_serves_while_a_new_one_loads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[Suggestion]]
) -> None:
    load, go = registry.load_version, threading.Event()

    def slow(name: str, version: str) -> Any:
        loaded = load(name, version)
        go.wait()
        return loaded

    monkeypatch.setattr(registry, "load_version", slow)
    activating = asyncio.ensure_future(activate(registry, "tiny", "2"))
    assert [await answered(registry) for _ in range(10)] == [answers["1"]] * 10
    go.set()
    await activating
    assert await answered(registry) == answers["2"]


async def test_an_unwritable_store_still_serves_the_version_and_reports_why(
    registry: Registry, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bundles, "activate", refuse)
    done = await activate(registry, "tiny", "2")
    assert tiny(registry).version == done.version == "2"
    assert done.unsaved == f"{store / 'tiny' / 'CURRENT'}: can't be written: Read-only file system"
    assert done.unsaved in caplog.text
    assert bundles.current(store, "tiny") == "1"


def test_an_invalid_current_is_overwritten(store: Path) -> None:
    (store / "tiny" / "CURRENT").write_text("nonsense")
    assert save(store, "tiny", "2") is None
    assert bundles.current(store, "tiny") == "2"


def test_a_current_that_names_the_version_is_left_alone(store: Path) -> None:
    before = (store / "tiny" / "CURRENT").stat()
    assert save(store, "tiny", "1") is None
    assert (store / "tiny" / "CURRENT").stat().st_ino == before.st_ino


async def test_a_model_that_was_rejected_at_start_is_healed_by_an_activation(
    store: Path, answers: dict[str, list[Suggestion]]
) -> None:
    flip_a_bit(store / "tiny" / "1" / "weights.safetensors")
    metrics = CollectorRegistry()
    registry = load(store, metrics)
    assert list(registry.rejected) == ["tiny"]
    assert await activate(registry, "tiny", "2") == Activated("tiny", "2", None, None)
    assert (registry.rejected, await answered(registry)) == ({}, answers["2"])
    assert metrics.get_sample_value("seqserve_model_ready", {"model": "tiny", "version": "1"}) is None
    await registry.close()


async def test_versions_published_meanwhile_are_listed(registry: Registry, store: Path) -> None:
    shutil.copytree(store / "tiny" / "1", store / "tiny" / "4")
    assert tiny(registry).versions == ["1", "2", "4"]
    shutil.rmtree(store / "tiny")
    assert tiny(registry).versions == []


async def test_the_metrics_are_those_of_the_served_version(
    registry: Registry, store: Path, metrics: CollectorRegistry
) -> None:
    def swaps(outcome: str) -> float | None:
        return metrics.get_sample_value("seqserve_swaps_total", {"model": "tiny", "outcome": outcome})

    def ready(version: str) -> float | None:
        return metrics.get_sample_value("seqserve_model_ready", {"model": "tiny", "version": version})

    info = {"model": "tiny", "version": "2", "family": "language_model", "precision": "int8"}
    assert (swaps("switched"), swaps("refused"), ready("1"), ready("2")) == (0, 0, 1, None)
    await activate(registry, "tiny", "2")
    assert (swaps("switched"), swaps("refused"), ready("1"), ready("2")) == (1, 0, None, 1)
    assert metrics.get_sample_value("seqserve_model_info", info) == 1
    assert metrics.get_sample_value("seqserve_model_info", info | {"version": "1"}) is None
    flip_a_bit(store / "tiny" / "1" / "weights.safetensors")
    with pytest.raises(BundleError):
        await activate(registry, "tiny", "1")
    await activate(registry, "tiny", "2")
    assert (swaps("switched"), swaps("refused"), ready("1"), ready("2")) == (1, 1, None, 1)


async def test_a_reload_serves_what_current_names(
    registry: Registry, store: Path, answers: dict[str, list[Suggestion]], caplog: pytest.LogCaptureFixture
) -> None:
    bundles.activate(store, "tiny", "2")
    with caplog.at_level(logging.INFO):
        await reload(registry)
        assert "tiny: serves 2, before 1" in caplog.text
        serving = tiny(registry)
        assert (await serving.answer(REQUEST)).suggestions == answers["2"]
        await reload(registry)
    assert "tiny: 2 is served as before" in caplog.text
    assert tiny(registry) is serving


async def test_a_reload_serves_new_models_and_heals_rejected_ones(store: Path, tmp_path: Path) -> None:
    weights = store / "tiny" / "1" / "weights.safetensors"
    whole = weights.read_bytes()
    flip_a_bit(store / "tiny" / "1" / "weights.safetensors")
    registry = load(store, CollectorRegistry())
    assert registry.served() == []
    weights.write_bytes(whole)
    shutil.copytree(store / "tiny", tmp_path / "another")
    for version in ("1", "2"):
        change(tmp_path / "another" / version, model="another")
    (tmp_path / "another").rename(store / "another")
    await reload(registry)
    assert [(model.name, model.version) for model in registry.served()] == [("another", "1"), ("tiny", "1")]
    assert registry.rejected == {}
    await registry.close()


async def test_a_reload_that_finds_a_bad_version_keeps_the_old_one_and_logs_why(
    registry: Registry, store: Path, answers: dict[str, list[Suggestion]], caplog: pytest.LogCaptureFixture
) -> None:
    flip_a_bit(store / "tiny" / "2" / "weights.safetensors")
    bundles.activate(store, "tiny", "2")
    await reload(registry)
    assert (await answered(registry), registry.rejected) == (answers["1"], {})
    assert "weights.safetensors: expected sha256" in caplog.text
    assert "1 is still served" in caplog.text


async def test_a_new_model_that_is_bad_does_not_make_a_ready_service_unready(
    registry: Registry, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (store / "bad" / "1").mkdir(parents=True)
    await reload(registry)
    assert registry.rejected == {}
    assert "bad: rejected" in caplog.text
    assert "no version is served" in caplog.text


async def test_a_model_still_rejected_reports_its_current_reason(store: Path) -> None:
    (store / "tiny" / "1" / "probe.json").unlink()
    registry = load(store, CollectorRegistry())
    assert "probe.json" in registry.rejected["tiny"]
    (store / "tiny" / "CURRENT").write_text("nonsense")
    await reload(registry)
    assert "nonsense" in registry.rejected["tiny"]
    await registry.close()


async def test_a_model_whose_folder_is_gone_goes_on_serving_and_is_logged(
    registry: Registry, store: Path, answers: dict[str, list[Suggestion]], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(store / "tiny")
    await reload(registry)
    assert await answered(registry) == answers["1"]
    assert f"tiny: missing from {store}; 1 is still served" in caplog.text
    with pytest.raises(UnknownVersion, match="tiny: no version '2'; available: none"):
        await activate(registry, "tiny", "2")


async def test_a_rejected_model_whose_folder_is_gone_is_forgotten(store: Path) -> None:
    (store / "bad" / "1").mkdir(parents=True)
    metrics = CollectorRegistry()
    registry = load(store, metrics)
    assert list(registry.rejected) == ["bad"]
    shutil.rmtree(store / "bad")
    await reload(registry)
    assert registry.rejected == {}
    assert metrics.get_sample_value("seqserve_model_ready", {"model": "bad", "version": ""}) is None
    await registry.close()


async def test_a_reload_raises_nothing(
    registry: Registry, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    bundles.activate(store, "tiny", "2")
    monkeypatch.setattr(registry, "load_version", fail)
    await reload(registry)
    assert "tiny: could not be reloaded; 1 is still served" in caplog.text
    assert "no room" in caplog.text
    shutil.rmtree(store)
    await reload(registry)
    assert "reload failed" in caplog.text
    assert tiny(registry).version == "1"
