import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, InvalidField, NotReady, UnknownModel
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.loading import load_predictor
from app.runtime.metrics import Metrics
from app.runtime.predictor import Resources
from app.runtime.registry import Registry
from app.runtime.scoring import Score
from tests.conftest import flip_a_bit

pytestmark = pytest.mark.anyio

PAYLOAD = {"text": "he said the market fell", "top_k": 10}
FILES = (
    "README.md",
    "probe.json",
    "recurrent.fp32.onnx",
    "recurrent.int8.onnx",
    "softmax.fp32.onnx",
    "softmax.int8.onnx",
    "vocabulary.txt",
    "weights.safetensors",
)


def publish(
    store: Path, bundle: Bundle, model: str, *, contents: dict[str, bytes] | None = None, **changes: Any
) -> Path:
    """The bundle under another name, some of it changed: checksums are valid, whatever the content."""
    files: dict[str, bytes | Path] = {name: bundle.path(name) for name in bundle.manifest.files}
    manifest = bundle.manifest.model_copy(update={"files": {}, "model": model, **changes})
    return bundles.publish(store, manifest, files | (contents or {}))


def probe(bundle: Bundle, **answers: Any) -> bytes:
    """The bundle's probe with other recorded answers."""
    document = bundle.json("probe.json")
    return json.dumps({**document, "answers": document["answers"] | answers}).encode()


def load(store: Path, metrics: Metrics | None = None, **options: Any) -> Registry:
    return Registry(
        store,
        threads=1,
        queue_size=8,
        batch_size=8,
        cache_bytes=1 << 20,
        metrics=metrics or Metrics(CollectorRegistry()),
        **options,
    ).load()


@pytest.fixture
def store(tiny_store: Path, tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A store of its own for this test, with the models `other` and `tiny`."""
    shutil.copytree(tiny_store, tmp_path / "store")
    publish(tmp_path / "store", tiny_bundle, "other")
    return tmp_path / "store"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


async def test_every_model_of_the_store_is_served(store: Path, tiny_bundle: Bundle) -> None:
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other", "tiny"]
    assert registry.rejected == {}
    tiny = registry.get("tiny", "language_model")
    assert (tiny.version, tiny.versions, tiny.manifest) == ("1", ["1"], tiny_bundle.manifest)
    answer = await tiny.answer(Suggest("the company said", top_k=3))
    assert len(answer.suggestions) == 3
    await registry.close()


async def test_the_current_version_is_served_and_reported(store: Path, tiny_bundle: Bundle) -> None:
    publish(store, tiny_bundle, "tiny", version="2")
    publish(store, tiny_bundle, "tiny", version="3")
    bundles.activate(store, "tiny", "2")
    registry = load(store)
    tiny = registry.get("tiny", "language_model")
    assert (tiny.version, tiny.versions) == ("2", ["1", "2", "3"])
    await registry.close()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
@pytest.mark.parametrize("file", FILES)
async def test_a_damaged_bundle_is_rejected_by_name_and_the_others_serve(
    store: Path, file: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(store / "tiny" / "1" / file)
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other"]
    assert list(registry.rejected) == ["tiny"]
    assert str(store / "tiny" / "1" / file) in registry.rejected["tiny"]
    assert "tiny: rejected" in caplog.text
    with pytest.raises(NotReady, match=file):
        registry.get("tiny", "language_model")
    assert (await registry.get(None, "language_model").answer(Suggest("the"))).suggestions
    await registry.close()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
async def test_a_model_without_a_proper_manifest_is_rejected(store: Path, content: str | None) -> None:
    path = store / "tiny" / "1" / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other"]
    assert str(path) in registry.rejected["tiny"]
    await registry.close()


@pytest.mark.parametrize("number", [0, 2, "1", None])
async def test_a_foreign_format_is_rejected_by_its_number(store: Path, number: object) -> None:
    path = store / "tiny" / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other"]
    assert f"format: expected 1, found {number!r}" in registry.rejected["tiny"]
    await registry.close()


@pytest.mark.parametrize("content", [None, "9\n", ""])
async def test_a_model_whose_current_version_is_missing_is_rejected(store: Path, content: str | None) -> None:
    current = store / "tiny" / "CURRENT"
    current.unlink()
    if content is not None:
        current.write_text(content)
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other"]
    assert "CURRENT" in registry.rejected["tiny"]
    await registry.close()


FOREIGN: dict[str, dict[str, Any]] = {
    "an unknown normalisation": {"normalisation": "bpe"},
    "a family that is not served": {"family": "captions"},
    "a repeated word": {"contents": {"vocabulary.txt": b"<eos>\n<unk>\nthe\nthe"}},
    "too few words": {"contents": {"vocabulary.txt": b"<eos>\n<unk>\nthe"}},
    "a vocabulary in no known encoding": {"contents": {"vocabulary.txt": b"<eos>\n<unk>\n\xff"}},
    "graphs that are none": {"contents": dict.fromkeys(("softmax.int8.onnx", "softmax.fp32.onnx"), b"?")},
    "a probe that is no object": {"contents": {"probe.json": b"[]"}},
    "a card that is no text": {"contents": {"README.md": b"\xff"}},
    "an image that is none": {"contents": {"curves.png": b"<svg>"}},
    "a probe that is too long": {"contents": {"probe.json": b" " * (1 << 16) + b"{}"}},
    "a probe that would take hours": {
        "contents": {
            "probe.json": b'{"payload": {"text": "the", "words": 1000000}, "answers": {"int8": [], "fp32": []}}'
        }
    },
    "a further probe with other answers": {
        "contents": {
            "probe.json": b'{"payload": {"text": "the"}, "answers": {"int8": [["the", 0]], "fp32": [["the", 0]]},'
            b' "further": 3}'
        }
    },
    "a probe without answers": {"contents": {"probe.json": b'{"payload": {"text": "the"}}'}},
    "a probe with a foreign payload": {
        "contents": {"probe.json": b'{"payload": {"image": 1}, "answers": {"int8": [], "fp32": []}}'}
    },
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN.keys())
async def test_a_whole_bundle_of_things_unknown_here_is_rejected_by_name_and_the_others_serve(
    store: Path, tiny_bundle: Bundle, changes: dict[str, Any]
) -> None:
    publish(store, tiny_bundle, "foreign", **changes)
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other", "tiny"]
    assert list(registry.rejected) == ["foreign"]
    assert "foreign" in registry.rejected["foreign"]
    await registry.close()


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load(tmp_path / "nowhere")


async def test_int8_serves_where_it_passes_the_probe(tiny_bundle: Bundle) -> None:
    int8 = LanguageModelPredictor.open(tiny_bundle, "int8", Resources())
    assert load_predictor(tiny_bundle).probe(PAYLOAD) == int8.probe(PAYLOAD)


@pytest.mark.parametrize("wrong", ["probability", "word", "fewer"])
async def test_fp32_serves_with_a_warning_where_int8_fails_the_probe(
    store: Path, tiny_bundle: Bundle, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = tiny_bundle.json("probe.json")["answers"]["int8"]
    (word, value), *others = recorded
    answers = {
        "probability": [[word, value + 0.01], *others],
        "word": [["otherwise", value], *others],
        "fewer": others,
    }
    folder = publish(store, tiny_bundle, "moved", contents={"probe.json": probe(tiny_bundle, int8=answers[wrong])})
    with caplog.at_level(logging.WARNING):
        predictor = load_predictor(bundles.read(folder))
    assert "falling back to fp32 on this machine" in caplog.text
    assert predictor.precision == "fp32"
    fp32 = LanguageModelPredictor.open(tiny_bundle, "fp32", Resources())
    assert predictor.probe(PAYLOAD) == fp32.probe(PAYLOAD)


async def test_a_graph_that_cannot_be_run_is_rejected(store: Path, tiny_bundle: Bundle) -> None:
    folder = publish(store, tiny_bundle, "broken", contents={"recurrent.int8.onnx": b"?"})
    with pytest.raises(BundleError, match=r"recurrent.int8.onnx: expected a graph"):
        load_predictor(bundles.read(folder))


async def test_a_vocabulary_that_does_not_fit_its_graphs_is_rejected(store: Path, tiny_bundle: Bundle) -> None:
    words = tiny_bundle.text("vocabulary.txt") + "\nfurther"
    sha256 = hashlib.sha256(words.encode()).hexdigest()
    changed = {"vocabulary.txt": words.encode()}
    with pytest.raises(BundleError, match=r"vocabulary.txt: expected the sha256"):
        load_predictor(bundles.read(publish(store, tiny_bundle, "other-words", contents=changed)))
    folder = publish(store, tiny_bundle, "more-words", contents=changed, vocabulary_sha256=sha256)
    with pytest.raises(BundleError, match=r"vocabulary.txt: expected \d+ tokens, found \d+"):
        load_predictor(bundles.read(folder))


async def test_weights_that_the_manifest_does_not_list_are_not_read(tiny_bundle: Bundle) -> None:
    files = {name: entry for name, entry in tiny_bundle.manifest.files.items() if name != "weights.safetensors"}
    unlisted = Bundle(tiny_bundle.folder, tiny_bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"weights.safetensors"):
        load_predictor(unlisted)


async def test_a_difference_in_the_last_digits_is_another_processor_and_no_fault(
    store: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = [[word, value + 1e-5] for word, value in tiny_bundle.json("probe.json")["answers"]["int8"]]
    folder = publish(store, tiny_bundle, "near", contents={"probe.json": probe(tiny_bundle, int8=recorded)})
    load_predictor(bundles.read(folder))
    assert caplog.text == ""


async def test_the_probe_tolerance_is_the_familys(
    store: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = [[word, value + 0.01] for word, value in tiny_bundle.json("probe.json")["answers"]["int8"]]
    folder = publish(store, tiny_bundle, "moved", contents={"probe.json": probe(tiny_bundle, int8=recorded)})
    monkeypatch.setattr(LanguageModelPredictor, "PROBE_TOLERANCE", 0.02)
    assert load_predictor(bundles.read(folder)).precision == "int8"
    assert caplog.text == ""


async def test_a_model_that_fails_the_probe_in_both_precisions_is_rejected(store: Path, tiny_bundle: Bundle) -> None:
    publish(store, tiny_bundle, "broken", contents={"probe.json": probe(tiny_bundle, int8=[], fp32=[["the", -1.0]])})
    registry = load(store)
    assert [model.name for model in registry.served()] == ["other", "tiny"]
    assert "fp32: probe: expected" in registry.rejected["broken"]
    await registry.close()


async def test_a_bundle_published_as_fp32_is_served_so(
    store: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish(store, tiny_bundle, "exact", served="fp32")
    fp32 = LanguageModelPredictor.open(tiny_bundle, "fp32", Resources())
    assert load_predictor(bundles.read(folder)).probe(PAYLOAD) == fp32.probe(PAYLOAD)
    assert caplog.text == ""


async def test_without_a_name_the_first_model_of_the_family_answers(store: Path) -> None:
    registry = load(store)
    assert registry.get(None, "language_model").name == "other"
    with pytest.raises(NotReady, match="no digits model is ready"):
        registry.get(None, "digits")
    await registry.close()


async def test_without_a_name_the_default_model_of_the_settings_answers_and_no_other(store: Path) -> None:
    registry = load(store, default_models={"language_model": "tiny"})
    assert registry.get(None, "language_model").name == "tiny"
    assert registry.get("other", "language_model").name == "other"
    await registry.close()
    registry = load(store, default_models={"language_model": "gone"})
    with pytest.raises(UnknownModel, match="'gone': no such language_model model; available: other, tiny"):
        registry.get(None, "language_model")
    await registry.close()


async def test_an_unknown_name_lists_the_available_models(store: Path) -> None:
    registry = load(store)
    with pytest.raises(UnknownModel, match=r"'ptb': no such language_model model; available: other, tiny"):
        registry.get("ptb", "language_model")
    with pytest.raises(UnknownModel, match="'tiny': no such digits model; available: none"):
        registry.get("tiny", "digits")
    await registry.close()


async def test_the_reasons_are_reported_where_all_models_are_rejected(store: Path) -> None:
    for model in ("other", "tiny"):
        (store / model / "1" / "vocabulary.txt").unlink()
    registry = load(store)
    assert registry.served() == []
    with pytest.raises(NotReady, match=r"no language_model model is ready; other: .*vocabulary.*; tiny: .*vocabulary"):
        registry.get(None, "language_model")
    await registry.close()


async def test_an_empty_store_serves_nothing(tmp_path: Path) -> None:
    registry = load(tmp_path)
    assert registry.served() == []
    with pytest.raises(NotReady, match="no language_model model is ready"):
        registry.get(None, "language_model")
    await registry.close()


async def test_a_payload_that_cannot_be_answered_is_rejected_for_its_field(store: Path) -> None:
    registry = load(store)
    with pytest.raises(InvalidField) as refused:
        await registry.get("tiny", "language_model").answer(Suggest("a", top_k=0))
    assert refused.value.field == "top_k"
    await registry.close()


@dataclass
class Asked:
    """A payload of no family in particular."""

    slow: bool
    bulk: bool = False


@pytest.mark.parametrize("slow", [False, True])
async def test_a_payload_that_is_slow_to_check_is_checked_in_a_thread(
    store: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load(store)
    tiny = registry.get("tiny", "language_model")
    example, checked_in = tiny.predictor.prepare(Suggest("the")), list[int]()

    def prepare(payload: object) -> object:
        checked_in.append(threading.get_ident())
        return example

    monkeypatch.setattr(tiny.predictor, "prepare", prepare)
    assert (await tiny.answer(Asked(slow))).suggestions
    assert (checked_in != [threading.get_ident()]) is slow
    await registry.close()


@pytest.mark.parametrize(("payload", "bulk"), [(Suggest("the"), False), (Score("the"), True)])
async def test_texts_to_score_are_bulk_and_keystrokes_are_not(
    store: Path, payload: Suggest | Score, bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load(store)
    tiny, queued = registry.get("tiny", "language_model"), list[bool]()

    async def submit(example: object, deadline: float | None, *, bulk: bool) -> None:
        queued.append(bulk)

    monkeypatch.setattr(tiny.scheduler, "submit", submit)
    await tiny.answer(payload)
    assert queued == [bulk]
    await registry.close()


async def test_a_closed_registry_answers_nothing_more(store: Path) -> None:
    registry = load(store)
    tiny = registry.get("tiny", "language_model")
    await registry.close()
    with pytest.raises(NotReady, match="tiny: is shutting down"):
        await tiny.answer(Suggest("the"))


async def test_each_model_has_its_own_cache_and_metrics(store: Path) -> None:
    registry = CollectorRegistry()
    models = load(store, Metrics(registry))

    def values(model: str) -> list[float]:
        """The tokens cached, tokens read and steps run so far."""
        found = (
            registry.get_sample_value("seqserve_cache_tokens_total", {"model": model, "source": "hit"}),
            registry.get_sample_value("seqserve_cache_tokens_total", {"model": model, "source": "read"}),
            registry.get_sample_value("seqserve_batch_size_count", {"model": model}),
        )
        return [value or 0 for value in found]

    before = {model: values(model) for model in ("tiny", "other")}  # the probe has been answered
    for model, cached in (("tiny", 0), ("tiny", 5), ("other", 0)):
        answer = await models.get(model, "language_model").answer(Suggest("he said the market fell"))
        assert answer.cached_tokens == cached
    await models.close()
    more = {model: [a - b for a, b in zip(values(model), before[model], strict=True)] for model in before}
    assert more == {"tiny": [5, 5, 2], "other": [0, 5, 1]}


async def test_the_metrics_name_the_served_and_the_rejected_version(store: Path) -> None:
    (store / "tiny" / "1" / "vocabulary.txt").unlink()
    metrics = Metrics(CollectorRegistry())
    await load(store, metrics).close()
    rendered = metrics.render().decode().splitlines()
    assert 'seqserve_model_ready{model="other",version="1"} 1.0' in rendered
    assert 'seqserve_model_ready{model="tiny",version="1"} 0.0' in rendered
    reported = [line for line in rendered if line.startswith("seqserve_model_info")]
    assert reported == ['seqserve_model_info{family="language_model",model="other",precision="int8",version="1"} 1.0']
    assert 'seqserve_refusals_total{model="other",reason="overloaded"} 0.0' in rendered
