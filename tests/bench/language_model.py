"""Benchmark the served language model against the same weights in eager torch, single-threaded, alternating.

    make bench

Each result is the thread's CPU time, the best of ROUNDS. The last line is JSON. Texts are random words, new in
each round, so that no state is cached.

For batches of keystrokes, the part of a step outside the graphs is reported too: it holds the GIL and blocks the event
loop, like validation. Scoring is also compared with a loop over the bare graphs.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import load_file

from app import bundle as bundles
from app.bundle import Bundle
from app.models.language_model import LanguageModel
from app.runtime.families.language_model import CHUNK, LanguageModelPredictor, Suggest
from app.runtime.onnx_session import session
from app.runtime.predictor import answer_all
from app.runtime.recurrent_engine import SOFTMAX_ROWS, TARGETS, RecurrentEngine
from app.runtime.scoring import Score
from app.runtime.state_cache import StateCache
from app.text.penn_treebank import PennTreebank
from app.text.words import Vocabulary
from training.language_model.publish import read_config
from training.language_model.recipe import build

STORE, MODEL = Path("models_store"), "ptb"
ROUNDS = 5
KEYSTROKES, COLD_TEXTS, COLD_WORDS, DOCUMENTS, DOCUMENT_WORDS = 200, 40, 20, 32, 200
BATCHES, STEPS, CONTEXT_WORDS = (1, 8, 16, 32), 40, 15  # keystrokes per batch, repetitions, words before them


class Timed:
    """A graph that sums its CPU time."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        self._graph = graph
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def run(self, *arguments: Any) -> Any:
        """Run the graph."""
        started = time.thread_time()
        found = self._graph.run(*arguments)
        self.seconds += time.thread_time() - started
        return found


class Served:
    """The published graphs behind the predictor that the server uses."""

    def __init__(self, bundle: Bundle) -> None:
        vocabulary = Vocabulary(bundle.text("vocabulary.txt").split("\n"))
        precision = bundle.manifest.served
        self.graphs = [Timed(session(bundle.path(f"{part}.{precision}.onnx"), 1)) for part in ("recurrent", "softmax")]
        self._predictor = LanguageModelPredictor(
            RecurrentEngine(*self.graphs),
            PennTreebank(vocabulary),
            precision=precision,
            cache=StateCache(64 * 2**20),
        )
        self.vocabulary = vocabulary

    def together(self, people: Sequence[Sequence[str]]) -> tuple[float, float, float]:
        """Return microseconds per keystroke in a batch of `people`: the step, its Python part, and validation."""
        in_graphs, taken, checking = sum(graph.seconds for graph in self.graphs), 0.0, 0.0
        for end in range(CONTEXT_WORDS, CONTEXT_WORDS + STEPS):
            payloads = [Suggest(" ".join(words[:end])) for words in people]
            began = time.thread_time()
            examples = [self._predictor.prepare(payload) for payload in payloads]
            checked = time.thread_time()
            answer_all(self._predictor, examples)
            taken += time.thread_time() - checked
            checking += checked - began
        in_graphs = sum(graph.seconds for graph in self.graphs) - in_graphs
        keystrokes = 1e-6 * len(people) * STEPS
        return taken / keystrokes, (taken - in_graphs) / keystrokes, checking / keystrokes

    def typing(self, words: Sequence[str]) -> float:
        """Return the median ms of a next-word answer after each word of a growing text."""
        texts = [" ".join(words[:end]) for end in range(1, len(words))]
        return self.cold(texts)

    def cold(self, texts: Sequence[str]) -> float:
        """Return the median ms of a next-word answer to an unseen text."""
        return statistics.median(_milliseconds(partial(self._ask, [Suggest(text)])) for text in texts)

    def scoring(self, texts: Sequence[str]) -> float:
        """Return ms per 1,000 words for a batch of texts."""
        taken = _milliseconds(lambda: self._ask([Score(text) for text in texts]))
        return 1000 * taken / sum(len(text.split()) for text in texts)

    def _ask(self, payloads: Sequence[Suggest | Score]) -> None:
        answer_all(self._predictor, [self._predictor.prepare(payload) for payload in payloads])


class Bare:
    """A bare loop over the same graphs."""

    def __init__(self, graphs: Sequence[Timed], ids: Callable[[str], list[int]]) -> None:
        self._recurrent, self._softmax = graphs
        self._ids = ids

    def scoring(self, texts: Sequence[str]) -> float:
        """Score texts of equal length in one batch."""
        ids = np.array([self._ids(text) for text in texts]).T  # (T, B)
        return 1000 * _milliseconds(lambda: self._score(ids)) / ids.size

    def _score(self, ids: np.ndarray[Any, Any]) -> None:
        state = np.zeros((ids.shape[1], self._recurrent.get_inputs()[1].shape[1]), np.float32)
        for start in range(0, len(ids), CHUNK):
            tokens = ids[start : start + CHUNK]
            hidden, state = self._recurrent.run(None, {"tokens": tokens, "state": state})
            rows, targets = hidden.reshape(-1, hidden.shape[2]), tokens.reshape(-1, 1)
            for first in range(0, len(rows), SOFTMAX_ROWS):
                part = slice(first, first + SOFTMAX_ROWS)
                self._softmax.run(TARGETS, {"hidden": rows[part], "targets": targets[part], "count": np.array([0])})


class Eager:
    """The torch module in inference mode, with the state of a growing text kept."""

    def __init__(self, module: LanguageModel, ids: Callable[[str], list[int]]) -> None:
        self._module = module
        self._ids = ids

    @torch.inference_mode()
    def typing(self, words: Sequence[str]) -> float:
        """Run one step and return the five most likely words."""
        state = self._module.initial_state(1)
        times = []
        for word in words:
            started = time.thread_time()
            hidden, _, state = self._module(torch.tensor([self._ids(word)]), state)
            self._module.logits(hidden).log_softmax(-1).topk(5)
            times.append(1000 * (time.thread_time() - started))
        return statistics.median(times)

    @torch.inference_mode()
    def cold(self, texts: Sequence[str]) -> float:
        """Run over the text, with the softmax of the last word only."""
        return statistics.median(_milliseconds(partial(self._last, text)) for text in texts)

    @torch.inference_mode()
    def scoring(self, texts: Sequence[str]) -> float:
        """Score texts of equal length in one batch."""
        ids = torch.tensor([self._ids(text) for text in texts]).T  # (T, B)
        return 1000 * _milliseconds(lambda: self._score(ids)) / ids.numel()

    def _last(self, text: str) -> None:
        hidden, _, _ = self._module(torch.tensor(self._ids(text))[:, None], self._module.initial_state(1))
        self._module.logits(hidden[-1]).log_softmax(-1).topk(5)

    def _score(self, ids: torch.Tensor) -> None:
        hidden, _, _ = self._module(ids[:-1], self._module.initial_state(ids.shape[1]))
        self._module.logits(hidden).log_softmax(-1).gather(-1, ids[1:, :, None]).sum()


def main() -> None:
    """Run the benchmark and print the table."""
    torch.set_num_threads(1)
    bundle = bundles.read(STORE / MODEL / bundles.current(STORE, MODEL))
    module = build(read_config(bundle.manifest.config))
    module.load_state_dict(load_file(bundle.path("weights.safetensors")), strict=False)  # a tied matrix is stored once
    served = Served(bundle)
    vocabulary = served.vocabulary
    known = [word for word in vocabulary.tokens if word.isalpha()]

    def ids(text: str) -> list[int]:
        return vocabulary.ids(text.split())

    eager, bare = Eager(module.eval(), ids), Bare(served.graphs, ids)
    chance = random.Random(1)
    rounds: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(ROUNDS):
        words = chance.choices(known, k=KEYSTROKES)
        cold = [" ".join(chance.choices(known, k=COLD_WORDS)) for _ in range(COLD_TEXTS)]
        documents = [" ".join(chance.choices(known, k=DOCUMENT_WORDS)) for _ in range(DOCUMENTS)]
        rounds.setdefault("next word, typing on, ms", []).append((served.typing(words), eager.typing(words)))
        rounds.setdefault("next word, 20 new words, ms", []).append((served.cold(cold), eager.cold(cold)))
        scoring = served.scoring(documents), eager.scoring(documents), bare.scoring(documents)
        rounds.setdefault("scoring, ms a 1,000 words", []).append(scoring)
        for batch in BATCHES:
            people = [chance.choices(known, k=CONTEXT_WORDS + STEPS) for _ in range(batch)]
            rounds.setdefault(f"{batch} typing at once, us", []).append(served.together(people))

    best = {name: [min(column) for column in zip(*times, strict=True)] for name, times in rounds.items()}
    together = {name: best.pop(name) for name in list(best) if "at once" in name}
    print(f"{MODEL} {bundle.manifest.version}, {bundle.manifest.served} graphs, one thread\n")
    print(f"{'':30}{'served':>10}{'torch':>10}{'times faster':>14}{'bare graphs':>14}")
    for name, (ours, theirs, *graphs) in best.items():
        print(f"{name:30}{ours:10.3f}{theirs:10.3f}{theirs / ours:14.1f}" + "".join(f"{ms:14.3f}" for ms in graphs))
    print(f"\n{'':30}{'a turn':>10}{'Python':>10}{'checking':>14}")
    for name, (turn, python, checking) in together.items():
        print(f"{name:30}{turn:10.1f}{python:10.1f}{checking:14.1f}")
    columns = ("served", "torch", "graphs"), ("turn", "python", "checking")
    tables = [
        {name: dict(zip(names, results, strict=False)) for name, results in table.items()}
        for names, table in zip(columns, (best, together), strict=True)
    ]
    print(json.dumps(tables[0] | tables[1]))


def _milliseconds(work: Callable[[], None]) -> float:
    started = time.thread_time()
    work()
    return 1000 * (time.thread_time() - started)


if __name__ == "__main__":
    main()
