"""Publishing of a subword language model: a run -> a measured bundle."""

import hashlib
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from app.bundle import Bundle
from app.manifest import CorpusEntry, Manifest
from app.models.gated_recurrence import GatedRecurrentLanguageModel
from app.models.language_model import parameter_count
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Resources
from app.runtime.recurrent_engine import RecurrentEngine, Segment
from app.runtime.writer_cache import Weights
from app.text.subword import SubwordTokenizer
from training import plots
from training.corpora.documents import documents, register_means, text_files
from training.corpora.files import sha256
from training.corpora.terms import SOURCES, UNSTATED
from training.language_model import contrast, typing_report
from training.language_model.contrast import Separation
from training.language_model.gated_export import export_gated_language_model
from training.language_model.subword_recipe import SubwordLanguageModelConfig, build
from training.language_model.typing_evaluation import (
    CACHE_BYTES,
    Texts,
    beginnings,
    bits,
    bits_a_byte,
    evaluate_typing,
    size,
    thinned,
)
from training.language_model.typing_report import TypingReport
from training.publishing import PRECISIONS, Measurements, Publisher, load_checkpoint, probe, publish_run
from training.run import Run, RunError

TOKENIZER = SubwordTokenizer.FILE
INT8_MAY_COST = 0.005  # bits a byte
SAMPLE_BYTES = 30_000  # of each source, about, by which int8 is compared with fp32
TYPED_WORDS = 2_000  # of each source, about, by simulated writers
PARITY_PIECES = 500
PARITY_CHUNK = 100
PROBE = {"text": "Thanks for your", "top_k": 5}
TERMS = "sources with terms of their own, listed in README.md; some for research or non-commercial use only"


def is_subword(run: Run) -> bool:
    """Return whether `run` is of a subword language model: it keeps the tokenizer."""
    return (run.folder / TOKENIZER).exists()


def publish(
    run: Run,
    store: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    data: Sequence[Path] = (),
    unfinished: bool = False,
) -> Path:
    """Publish `run` as `publish_run` does; `data` holds the folders of its texts.

    The served graphs are measured on all validation texts; int8 is served if it costs at most INT8_MAY_COST bits a byte
    on a sample. An `unfinished` run is published as it is, measured on the sample alone, and its card says so. Raise
    RunError if the texts changed since the training.
    """
    return publish_run(SubwordLanguageModelPublisher(run, data, unfinished=unfinished), store, name, version)


@dataclass(frozen=True)
class ValidationTexts:
    """The tokenizer's file and the validation documents of each source."""

    tokenizer: bytes
    texts: Texts

    @property
    def sample(self) -> Texts:
        """Every n-th document of each source, SAMPLE_BYTES in all, about."""
        steps = {name: max(1, sum(map(len, texts)) // SAMPLE_BYTES) for name, texts in self.texts.items()}
        return {name: texts[:: steps[name]] for name, texts in self.texts.items()}


class SubwordLanguageModelPublisher(Publisher[ValidationTexts, GatedRecurrentLanguageModel]):
    """Publishing hooks of subword language models."""

    family = "language_model"

    def __init__(self, run: Run, folders: Sequence[Path], *, unfinished: bool) -> None:
        super().__init__(run)
        self.config = SubwordLanguageModelConfig(**run.read("config.json"))
        self.source = run.read("source.json")
        self.steps = 0  # of training, once it is built
        self._folders = folders
        self._unfinished = unfinished

    @override
    def default_name(self) -> str:
        return self.run.folder.resolve().name

    @override
    def load(self) -> ValidationTexts:
        if not self._folders:
            raise RunError("data: expected the folders of the run's texts, found none")
        files = text_files(self._folders)["valid"]
        absent = self.source["valid"].keys() - files.keys()
        if absent:
            raise RunError(f"data: expected the validation texts of the run, found none of {', '.join(sorted(absent))}")
        paths = [path for name in self.source["valid"] for path in files[name]]
        self.run.check_texts({f"{path.parent.name}/{path.name}": sha256(path) for path in paths})
        texts = {name: list(documents(name, files[name])) for name in sorted(self.source["valid"])}
        return ValidationTexts((self.run.folder / TOKENIZER).read_bytes(), {k: v for k, v in texts.items() if v})

    @override
    def build(self, data: ValidationTexts) -> GatedRecurrentLanguageModel:
        checkpoint = load_checkpoint(self.run, "step", 0 if self._unfinished else self.config.steps, "finished steps")
        self.steps = checkpoint["progress"]["step"]
        model = build(self.config)
        model.load_state_dict(checkpoint["average"])
        return model.half().float().eval()

    @override
    def export(self, data: ValidationTexts, model: GatedRecurrentLanguageModel) -> dict[str, bytes | Path]:
        return {**export_gated_language_model(model), TOKENIZER: data.tokenizer}

    @override
    def describe(self, data: ValidationTexts, model: GatedRecurrentLanguageModel) -> dict[str, Any]:
        return {
            "config": {"cell": "mingru", **self.run.read("config.json")},
            "normalisation": "subword",
            "calibration": asdict(Weights()),
            "vocabulary_sha256": hashlib.sha256(data.tokenizer).hexdigest(),
            "corpus": CorpusEntry(name=self.source["name"], terms=TERMS, sha256=self.source["sha256"]),
            "parameters": parameter_count(model),
        }

    @override
    def measure(
        self, draft: Bundle, data: ValidationTexts, model: GatedRecurrentLanguageModel, scratch: Path
    ) -> Measurements:
        predictors = {precision: LanguageModelPredictor.open(draft, precision, Resources()) for precision in PRECISIONS}
        sampled = {p: register_means(bits_per_byte(predictor, data.sample)) for p, predictor in predictors.items()}
        cost = sampled["int8"]["macro"] - sampled["fp32"]["macro"]
        served: Precision = "int8" if cost <= INT8_MAY_COST else "fp32"
        measured = (
            sampled[served] if self._unfinished else register_means(bits_per_byte(predictors[served], data.texts))
        )
        metrics = {
            "valid_bits_per_byte": measured["macro"],
            **{f"valid_bits_per_byte/{name}": bits for name, bits in measured.items() if name != "macro"},
            **{f"sample_bits_per_byte_{precision}": bits["macro"] for precision, bits in sampled.items()},
            "int8_cost": cost,
            "torch_difference": torch_difference(model, draft, data),
            "steps": self.steps,
        }
        title, shown = f"{draft.manifest.model} {draft.manifest.version}", dict[str, Path]()
        if recorded := self.run.metrics():
            shown["curves.png"] = scratch / "curves.png"
            plots.register_curves(recorded, shown["curves.png"], title)
        rows = [
            f"| {name} | {bits:.3f} | {sampled['int8'][name]:.3f} | {sampled['fp32'][name]:.3f} |"
            for name, bits in measured.items()
        ]
        tables = "\n".join(rows)
        if not self._unfinished:
            report, separations = self._typing(draft, served, data)
            metrics |= {f"typing/{name}": value for name, value in report.macro().items()}
            metrics |= {f"contrast_auc/{name}": found.auc for name, found in separations.items()}
            shown["typing.png"] = scratch / "typing.png"
            typing_report.plot({title: report}, shown["typing.png"], f"{title}, validation texts")
            template = resources.files("training.language_model").joinpath("typing_card.md").read_text(encoding="utf-8")
            tables += string.Template(template).substitute(
                words=f"{TYPED_WORDS:,}",
                registers=typing_report.table(report),
                contrasts=contrast.table({draft.manifest.model: separations}),
            )
        return Measurements(metrics, served, probe(predictors, PROBE), shown, tables)

    def _typing(
        self, draft: Bundle, served: Precision, data: ValidationTexts
    ) -> tuple[TypingReport, dict[str, Separation]]:
        """Let simulated writers type TYPED_WORDS words of each source, and tell English from spoilt lines."""
        predictor = LanguageModelPredictor.open(draft, served, Resources(cache_bytes=CACHE_BYTES))
        typed = {name: beginnings(thinned(some, TYPED_WORDS), TYPED_WORDS) for name, some in data.texts.items()}
        report = evaluate_typing(predictor, typed)
        lines = contrast.english_lines(data.texts, contrast.LINES, random.Random(1))  # noqa: S311 - no secret
        return report, contrast.evaluate(bits_a_byte(predictor), lines)

    @override
    def card(self, manifest: Manifest, data: ValidationTexts, measurements: Measurements) -> str:
        template = string.Template(
            resources.files("training.language_model").joinpath("subword_card.md").read_text(encoding="utf-8")
        )
        config, train = self.config, self.source["train"]
        left = f" Provisional: {self.steps:,} of {config.steps:,} steps of its training are done."
        return template.substitute(
            model=manifest.model,
            version=manifest.version,
            layers=config.layers,
            hidden=config.hidden_size,
            width=config.width,
            embedding=config.embedding_size,
            parameters=f"{manifest.parameters:,}",
            vocabulary=f"{config.vocabulary_size:,}",
            provisional=left if self.steps < config.steps else "",
            words=f"{sum(part['words'] for part in train.values()):,}",
            documents=len(train),
            pieces=f"{self.steps * config.batch_size * config.window:,}",
            sources="\n".join(
                f"| {name} | {terms.content} | {train[name]['words']:,} | {terms.licence} |"
                for name in sorted(train)
                for terms in [SOURCES.get(name, UNSTATED)]
            ),
            registers=measurements.tables,
            texts="sample" if self._unfinished else "all texts",
            served=manifest.served,
            cost=f"{manifest.metrics['int8_cost']:.4f}",
            sample_bytes=f"{sum(map(_bytes, data.sample.values())):,}",
            difference=f"{manifest.metrics['torch_difference']:.1e}",
            curves="\n![validation by register](curves.png)\n" if measurements.plots else "",
        )


def bits_per_byte(predictor: LanguageModelPredictor, texts: Texts) -> dict[str, float]:
    """Return -log2 p of each source's documents over their bytes, line ends and document ends included."""
    named = [name for name, some in texts.items() for _ in some]
    totals = dict.fromkeys(texts, 0.0)
    for name, found in zip(named, bits(predictor, [text for some in texts.values() for text in some]), strict=True):
        totals[name] += found
    return {name: total / _bytes(texts[name]) for name, total in totals.items()}


def _bytes(texts: Sequence[str]) -> int:
    return sum(map(size, texts))


@torch.inference_mode()
def torch_difference(model: GatedRecurrentLanguageModel, draft: Bundle, data: ValidationTexts) -> float:
    """Return the largest difference of any piece's log-probability, module and fp32 graphs, over PARITY_PIECES."""
    engine = RecurrentEngine.open(draft, "fp32")
    everything = np.arange(engine.vocabulary_size)
    state, graph_state, largest = model.initial_state(1), engine.initial_state(), 0.0
    for pieces in _chunks(SubwordTokenizer.parse(data.tokenizer.decode()), data.texts):
        hidden, state = model(torch.tensor(pieces)[:, None], state)
        expected = model.logits(hidden).log_softmax(-1)[:, 0].numpy()  # (T, V)
        for piece, row in zip(pieces, expected, strict=True):
            (reading,) = engine.run([Segment(graph_state, [piece], candidates=everything)])
            graph_state = reading.state
            largest = max(largest, float(np.abs(reading.candidates - row).max()))
    return largest


def _chunks(tokenizer: SubwordTokenizer, texts: Texts) -> Iterator[list[int]]:
    """The first pieces of the sources, the same number of each: PARITY_PIECES in chunks of PARITY_CHUNK at most."""
    count = -(-PARITY_PIECES // len(texts))
    ids = [piece for some in texts.values() for piece in [tokenizer.end, *tokenizer.ids(some[0])][:count]]
    for start in range(0, len(ids), PARITY_CHUNK):
        yield ids[start : start + PARITY_CHUNK]
