"""Publishing of a language model: a run -> a measured bundle."""

import hashlib
import string
from collections.abc import Iterable
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from app.bundle import Bundle
from app.manifest import CorpusEntry, Manifest
from app.models.language_model import LanguageModel, parameter_count
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources
from app.runtime.recurrent_engine import RecurrentEngine, Segment
from app.text import END, UNKNOWN
from training import plots
from training.evaluate import score_files
from training.language_model import data as texts
from training.language_model.data import Corpus, Source
from training.language_model.export import export_language_model
from training.language_model.recipe import LanguageModelConfig, build
from training.publishing import CELL_NAMES, PRECISIONS, Measurements, Publisher, load_checkpoint, probe, publish_run
from training.run import Run

INT8_MAY_COST = 0.005  # of the validation perplexity
PARITY_TOKENS = 10_000
PARITY_CHUNK = 500
PROBE_TOKENS = 20


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does.

    The graphs are measured on the whole validation and test texts, as in the server; int8 is served if it costs at most
    INT8_MAY_COST of the validation perplexity. Raise RunError if the texts changed since the training.
    """
    return publish_run(LanguageModelPublisher(run), store, name, version)


class LanguageModelPublisher(Publisher[Corpus, LanguageModel]):
    """Publishing hooks of language models."""

    family = "language_model"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.config = read_config(run.read("config.json"))
        self.source = _source(run)

    @override
    def default_name(self) -> str:
        return self.source.name

    @override
    def load(self) -> Corpus:
        corpus = texts.load(self.source, self.config.vocabulary_size)
        self.run.check_texts(corpus.sha256)
        return corpus

    @override
    def build(self, data: Corpus) -> LanguageModel:
        return trained(self.run, self.config)

    @override
    def export(self, data: Corpus, model: LanguageModel) -> dict[str, bytes | Path]:
        return {**export_language_model(model), "vocabulary.txt": data.vocabulary.file_content().encode()}

    @override
    def describe(self, data: Corpus, model: LanguageModel) -> dict[str, Any]:
        source = data.source
        return {
            "normalisation": source.normalisation,
            "vocabulary_sha256": hashlib.sha256(data.vocabulary.file_content().encode()).hexdigest(),
            "corpus": CorpusEntry(name=source.name, terms=source.terms, sha256=data.sha256),
            "parameters": parameter_count(model),
        }

    @override
    def measure(self, draft: Bundle, data: Corpus, model: LanguageModel, scratch: Path) -> Measurements:
        metrics, recorded = measure(draft, model, data)
        served: Precision = "int8" if metrics["int8_cost"] <= INT8_MAY_COST else "fp32"
        metrics |= {f"{split}_perplexity": metrics[f"{split}_perplexity_{served}"] for split in ("valid", "test")}
        curves = scratch / "curves.png"
        plots.learning_curve(self.run.metrics(), curves, f"{draft.manifest.model} {draft.manifest.version}")
        return Measurements(metrics, served, recorded, {"curves.png": curves})

    @override
    def card(self, manifest: Manifest, data: Corpus, measurements: Measurements) -> str:
        return model_card(manifest, self.source.caveats)


def read_config(stored: dict[str, Any]) -> LanguageModelConfig:
    """Return the configuration stored in a run or a manifest."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return LanguageModelConfig(**values)


def trained(run: Run, config: LanguageModelConfig) -> LanguageModel:
    """Return the run's model in the bundle's float16 precision; raise RunError if the run is not finished."""
    checkpoint = load_checkpoint(run, "epoch", config.epochs, "finished epochs")
    model = build(config)
    model.load_state_dict(checkpoint["model"])
    return model.half().float().eval()


def measure(draft: Bundle, model: LanguageModel, corpus: Corpus) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of a bundle's graphs, and its probe."""
    predictors = {precision: LanguageModelPredictor.open(draft, precision, Resources()) for precision in PRECISIONS}
    metrics: dict[str, float] = {"torch_difference": torch_difference(model, draft, corpus)}
    for precision, predictor in predictors.items():
        files = [corpus.source.files[split] for split in ("valid", "test")]
        for split, score in zip(("valid", "test"), score_files(predictor, files), strict=True):
            metrics |= {f"{split}_perplexity_{precision}": score.perplexity, f"{split}_tokens": score.tokens}
    metrics["int8_cost"] = metrics["valid_perplexity_int8"] / metrics["valid_perplexity_fp32"] - 1
    common = (token for token in corpus.vocabulary.tokens if token not in (END, UNKNOWN))  # no line of the corpus
    payload = {"text": " ".join(islice(common, PROBE_TOKENS)), "top_k": 5}
    return metrics, probe(predictors, payload)


@torch.inference_mode()
def torch_difference(model: LanguageModel, draft: Bundle, corpus: Corpus) -> float:
    """Return the largest difference of log-probabilities of module and fp32 graphs: all words, PARITY_TOKENS tokens."""
    engine = RecurrentEngine.open(draft, "fp32")
    everything = np.arange(engine.vocabulary_size)
    state, graph_state, largest = model.initial_state(1), engine.initial_state(), 0.0
    for start in range(0, min(PARITY_TOKENS, len(corpus.valid)), PARITY_CHUNK):
        tokens = corpus.valid[start : start + PARITY_CHUNK].tolist()
        hidden, _, state = model(torch.tensor(tokens)[:, None], state)
        expected = model.logits(hidden).log_softmax(-1)[:, 0].numpy()  # (T, V)
        for token, row in zip(tokens, expected, strict=True):
            (reading,) = engine.run([Segment(graph_state, [token], candidates=everything)])
            graph_state = reading.state
            largest = max(largest, float(np.abs(reading.candidates - row).max()))
    return largest


def model_card(manifest: Manifest, caveats: Iterable[str] = ()) -> str:
    """Return the bundle's README.md: training data and terms, metrics, limitations."""
    template = string.Template(resources.files("training.language_model").joinpath("card.md").read_text())
    metrics, config, epochs = manifest.metrics, manifest.config, manifest.config["epochs"]
    return template.substitute(
        model=manifest.model,
        version=manifest.version,
        cell=CELL_NAMES[manifest.cell],
        layers=" -> ".join(map(str, [config["embedding_size"], *config["hidden_sizes"]])),
        output="output tied to the embedding" if config["tied"] else "an output layer of its own",
        parameters=f"{manifest.parameters:,}",
        corpus=manifest.corpus.name,
        terms=manifest.corpus.terms,
        vocabulary=f"{config['vocabulary_size']:,}",
        epochs="1 epoch" if epochs == 1 else f"{epochs} epochs",
        caveats="".join(f"\n- {caveat}" for caveat in caveats),
        served=manifest.served,
        cost=f"{metrics['int8_cost']:+.2%}",
        difference=f"{metrics['torch_difference']:.1e}",
        **{key: f"{metrics[key]:.2f}" for key in metrics if "perplexity" in key},
        **{key: f"{metrics[key]:,.0f}" for key in ("valid_tokens", "test_tokens")},
    )


def _source(run: Run) -> Source:
    described = run.read("source.json")
    del described["sha256"]
    files = {split: Path(path) for split, path in described["files"].items()}
    return Source(**described | {"files": files, "caveats": tuple(described.get("caveats", ()))})
