"""A language model of any cell is trained, published and served, and says which cell it has."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app import bundle as bundles
from app.main import create_app
from app.models.recurrent import CELLS, Cell
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.runtime.scoring import Score
from app.settings import Settings
from tests.api.conftest import talk
from training.language_model.data import Corpus
from training.language_model.publish import publish, read_config, trained
from training.language_model.recipe import LanguageModelConfig, perplexity, train
from training.publishing import CELL_NAMES
from training.run import Run

pytestmark = pytest.mark.anyio


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    found: Cell = request.param
    return found


@pytest.fixture
def run(cell: Cell, shrunk: Callable[[str], LanguageModelConfig], corpus: Corpus, tmp_path: Path) -> Run:
    """The shrunk `cpu` preset, trained on one window."""
    config = replace(shrunk("cpu"), cell=cell, batch_size=8, steps=12, epochs=1)
    run = Run(tmp_path / "run")
    assert train(config, corpus, run)
    return run


@pytest.fixture
def store(run: Run, tmp_path: Path) -> Path:
    publish(run, tmp_path / "store", name="words", version="1")
    return tmp_path / "store"


def test_a_model_of_any_cell_answers_what_its_module_computes(
    cell: Cell, run: Run, store: Path, corpus: Corpus
) -> None:
    bundle = bundles.read(store / "words" / "1")
    assert bundle.manifest.metrics["torch_difference"] < 1e-5
    assert CELL_NAMES[cell] in bundle.text("README.md").splitlines()[2]
    predictor = load_predictor(bundle)  # raises unless the answers are as recorded
    assert isinstance(predictor, LanguageModelPredictor)
    text = corpus.source.files["test"].read_text()
    score, suggestions = answer_all(predictor, [predictor.prepare(each) for each in (Score(text), Suggest("the bank"))])
    expected = perplexity(trained(run, read_config(run.read("config.json"))), corpus.test, corpus.vocabulary.end)
    assert math.exp(-score.log_likelihood / score.tokens) == pytest.approx(expected, rel=1e-3)
    assert len(suggestions.suggestions) == 5


async def test_the_service_returns_the_cell_of_a_model(cell: Cell, store: Path) -> None:
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state is not None
        await state["registry"].opened()
        (listed,) = (await client.get("/models")).json()["models"]
        described = (await client.get("/models/words")).json()
        answer = await client.post("/next-word", json={"text": "the bank said"})
    assert (listed["name"], listed["ready"], listed["cell"]) == ("words", True, cell)
    assert described["config"]["cell"] == cell
    assert len(answer.json()["suggestions"]) == 5


def test_a_run_from_before_there_was_a_choice_is_one_of_lstms(finished: Run) -> None:
    stored = finished.read("config.json")
    assert stored.pop("cell") == "lstm"
    assert read_config(stored).cell == "lstm"
    trained(finished, read_config(stored))
