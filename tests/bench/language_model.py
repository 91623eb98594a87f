"""Times the served language model against the same weights in eager torch: one thread each, in turn, in one process.

    make bench

Each figure is the best of ROUNDS, since other work on a machine can only make a round slower. The last line is the same
table as JSON. Texts are random words of the model's vocabulary, new ones each time: no round finds another's states.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from app import bundle as bundles
from app.models.language_model import LanguageModel
from app.runtime.batching import answer_all
from app.runtime.language_model import LanguageModelPredictor, Score, Suggest
from app.runtime.registry import load_predictor
from training.language_model import build
from training.publish.language_model import read_config

STORE, MODEL = Path("models_store"), "ptb"
ROUNDS = 5
KEYSTROKES, COLD_TEXTS, COLD_WORDS, DOCUMENTS, DOCUMENT_WORDS = 200, 40, 20, 32, 200


class Served:
    """The published graphs behind the predictor that the server uses."""

    def __init__(self, predictor: LanguageModelPredictor) -> None:
        self._predictor = predictor

    def typing(self, words: Sequence[str]) -> float:
        """Median ms of a next-word answer, asked after each word of a growing text."""
        texts = [" ".join(words[:end]) for end in range(1, len(words))]
        return self.cold(texts)

    def cold(self, texts: Sequence[str]) -> float:
        """Median ms of a next-word answer to a text never seen."""
        return statistics.median(_milliseconds(partial(self._ask, [Suggest(text)])) for text in texts)

    def scoring(self, texts: Sequence[str]) -> float:
        """Ms a 1,000 words, all texts at once."""
        taken = _milliseconds(lambda: self._ask([Score(text) for text in texts]))
        return 1000 * taken / sum(len(text.split()) for text in texts)

    def _ask(self, payloads: Sequence[Suggest | Score]) -> None:
        answer_all(self._predictor, [self._predictor.prepare(payload) for payload in payloads])


class Eager:
    """The torch module as a competent user runs it, the state of a growing text kept by hand."""

    def __init__(self, module: LanguageModel, ids: Callable[[str], list[int]]) -> None:
        self._module = module
        self._ids = ids

    @torch.inference_mode()
    def typing(self, words: Sequence[str]) -> float:
        """As Served: one step and the five likeliest."""
        state = self._module.initial_state(1)
        times = []
        for word in words:
            started = time.perf_counter()
            hidden, _, state = self._module(torch.tensor([self._ids(word)]), state)
            self._module.logits(hidden).log_softmax(-1).topk(5)
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    @torch.inference_mode()
    def cold(self, texts: Sequence[str]) -> float:
        """As Served: one pass over the text, the softmax for its last word alone."""
        return statistics.median(_milliseconds(partial(self._last, text)) for text in texts)

    @torch.inference_mode()
    def scoring(self, texts: Sequence[str]) -> float:
        """As Served: the texts, all of one length, in one batch."""
        ids = torch.tensor([self._ids(text) for text in texts]).T  # (T, B)
        return 1000 * _milliseconds(lambda: self._score(ids)) / ids.numel()

    def _last(self, text: str) -> None:
        hidden, _, _ = self._module(torch.tensor(self._ids(text))[:, None], self._module.initial_state(1))
        self._module.logits(hidden[-1]).log_softmax(-1).topk(5)

    def _score(self, ids: torch.Tensor) -> None:
        hidden, _, _ = self._module(ids[:-1], self._module.initial_state(ids.shape[1]))
        self._module.logits(hidden).log_softmax(-1).gather(-1, ids[1:, :, None]).sum()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bundle = bundles.read(STORE / MODEL / bundles.current(STORE, MODEL))
    module = build(read_config(bundle.manifest.config))
    module.load_state_dict(load_file(bundle.path("weights.safetensors")), strict=False)  # a tied matrix is there once
    predictor = load_predictor(bundle, threads=1, cache_bytes=64 * 2**20)
    assert isinstance(predictor, LanguageModelPredictor)
    vocabulary = predictor.vocabulary
    known = [word for word in vocabulary.tokens if word.isalpha()]
    served, eager = Served(predictor), Eager(module.eval(), lambda text: vocabulary.ids(text.split()))

    chance = random.Random(1)
    rounds: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        words = chance.choices(known, k=KEYSTROKES)
        cold = [" ".join(chance.choices(known, k=COLD_WORDS)) for _ in range(COLD_TEXTS)]
        documents = [" ".join(chance.choices(known, k=DOCUMENT_WORDS)) for _ in range(DOCUMENTS)]
        rounds.setdefault("next word, typing on, ms", []).append((served.typing(words), eager.typing(words)))
        rounds.setdefault("next word, 20 new words, ms", []).append((served.cold(cold), eager.cold(cold)))
        rounds.setdefault("scoring, ms a 1,000 words", []).append((served.scoring(documents), eager.scoring(documents)))

    best = {name: tuple(map(min, zip(*times, strict=True))) for name, times in rounds.items()}
    print(f"{MODEL} {bundle.manifest.version}, {bundle.manifest.served} graphs, one thread\n")
    print(f"{'':30}{'served':>10}{'torch':>10}{'times faster':>14}")
    for name, (ours, theirs) in best.items():
        print(f"{name:30}{ours:10.3f}{theirs:10.3f}{theirs / ours:14.1f}")
    print(json.dumps({name: {"served": ours, "torch": theirs} for name, (ours, theirs) in best.items()}))


def _milliseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
