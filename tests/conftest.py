"""What all tests share: a tiny published language model, made once: random weights, real format."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from app import bundle as bundles
from app.bundle import CorpusEntry, Manifest
from app.models.language_model import LanguageModel, parameter_count
from app.runtime.batching import Resources
from app.runtime.language_model import LanguageModelPredictor
from training.export.language_model import export_language_model
from training.publish.manifest import PRECISIONS, probe

WORDS = (
    "<eos> <unk> N $ 's n't the a of to in company profits rose fell shares market says said do does it its is was"
    " new york stock mr. u.s. inc. i he she they can could third-quarter 1980s price prices trading bank banks"
).split()


torch.set_num_threads(1)  # tiny matrices gain nothing from a second thread, and sums are made in one order everywhere


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What draws by chance draws the same in every run."""
    torch.manual_seed(1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_model() -> LanguageModel:
    """A seeded model over WORDS, its weights already those that a float16 file keeps."""
    torch.manual_seed(0)
    model = LanguageModel(
        vocabulary_size=len(WORDS), embedding_size=16, hidden_sizes=(24, 16), tied=True, initial_range=0.8
    )
    return model.half().float().eval()


@pytest.fixture(scope="session")
def tiny_store(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model, `tiny` version `1`. Read only: whoever changes it copies it first."""
    store = tmp_path_factory.mktemp("store")
    vocabulary = "\n".join(WORDS).encode()
    contents: dict[str, bytes | Path] = {"vocabulary.txt": vocabulary, **export_language_model(tiny_model)}
    contents["README.md"] = b"# tiny\n\nRandom weights, for tests.\n"
    manifest = Manifest(
        format=bundles.FORMAT,
        family="language_model",
        model="tiny",
        version="1",
        created="2026-01-01T00:00:00Z",
        commit=None,
        config={"cell": "lstm"},
        normalisation="ptb",
        vocabulary_sha256=hashlib.sha256(vocabulary).hexdigest(),
        corpus=CorpusEntry(name="none", terms="none", sha256={}),
        metrics={},
        parameters=parameter_count(tiny_model),
        served="int8",
        files={},
    )
    payload = {"text": "the company said profits", "top_k": 3}
    draft = bundles.read(bundles.publish(tmp_path_factory.mktemp("draft"), manifest, contents))
    opened = {p: LanguageModelPredictor.open(draft, p, Resources()) for p in PRECISIONS}
    contents["probe.json"] = json.dumps(probe(opened, payload)).encode()
    bundles.publish(store, manifest, contents)
    return store
