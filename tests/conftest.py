"""Fixtures of all tests: a tiny published language model with random weights."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from app import bundle as bundles
from app.bundle import Bundle
from app.models.language_model import LanguageModel, parameter_count
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.predictor import Resources
from tests.manifests import tiny_manifest
from training.language_model.export import export_language_model
from training.publishing import PRECISIONS, probe

WORDS = (
    "<eos> <unk> N $ 's n't the a of to in company profits rose fell shares market says said do does it its is was"
    " new york stock mr. u.s. inc. i he she they can could third-quarter 1980s price prices trading bank banks"
).split()


torch.set_num_threads(1)  # tiny matrices gain nothing from a second thread; a fixed order of summation


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch before each test."""
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the developer's own settings."""
    for name in [name for name in os.environ if name.upper().startswith("SEQSERVE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def random_model(seed: int) -> LanguageModel:
    """Return a model over WORDS with weights that float16 represents exactly."""
    torch.manual_seed(seed)
    model = LanguageModel(
        vocabulary_size=len(WORDS), embedding_size=16, hidden_sizes=(24, 16), tied=True, initial_range=0.8
    )
    return model.half().float().eval()


@pytest.fixture(scope="session")
def tiny_model() -> LanguageModel:
    """A seeded model over WORDS."""
    return random_model(0)


@pytest.fixture(scope="session")
def tiny_store(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with version `1` of the model `tiny`. Read-only: copy it to change it."""
    store = tmp_path_factory.mktemp("store")
    publish_tiny(store, tiny_model, "1", tmp_path_factory.mktemp("draft"))
    return store


@pytest.fixture(scope="session")
def two_versions(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions `1` (current) and `2` of `tiny`, whose answers differ. Read-only."""
    store = tmp_path_factory.mktemp("versions") / "store"
    shutil.copytree(tiny_store, store)
    publish_tiny(store, random_model(2), "2", tmp_path_factory.mktemp("draft"))
    bundles.activate(store, "tiny", "1")
    return store


@pytest.fixture
def store(two_versions: Path, tmp_path: Path) -> Path:
    """A store of this test's own with versions `1` (current) and `2` of `tiny`."""
    return Path(shutil.copytree(two_versions, tmp_path / "store"))


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def publish_tiny(store: Path, model: LanguageModel, version: str, drafts: Path) -> None:
    """Publish a model over WORDS as a version of `tiny`; `drafts` is an empty folder for the probe's draft."""
    vocabulary = "\n".join(WORDS).encode()
    contents: dict[str, bytes | Path] = {"vocabulary.txt": vocabulary, **export_language_model(model)}
    contents["README.md"] = b"# tiny\n\nRandom weights, for tests.\n"
    manifest = tiny_manifest(
        "language_model",
        version=version,
        config={"cell": "lstm"},
        normalisation="ptb",
        vocabulary_sha256=hashlib.sha256(vocabulary).hexdigest(),
        parameters=parameter_count(model),
    )
    payload = {"text": "the company said profits", "top_k": 3}
    draft = bundles.read(bundles.publish(drafts, manifest, contents))
    opened = {p: LanguageModelPredictor.open(draft, p, Resources()) for p in PRECISIONS}
    contents["probe.json"] = json.dumps(probe(opened, payload)).encode()
    bundles.publish(store, manifest, contents)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_store: Path) -> Bundle:
    return bundles.read(tiny_store / "tiny" / "1")
