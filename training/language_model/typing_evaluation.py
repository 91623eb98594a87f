"""The typing evaluation of a served language model: suggestions to simulated writers, and scores of their texts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.families.language_model import Suggest as Payload
from app.runtime.predictor import answer_all
from app.runtime.scoring import Score
from training.corpora.documents import documents, text_files
from training.language_model.typing_metrics import OFFERED, Counts, Query, Suggest, measure
from training.language_model.typing_report import TypingReport

CACHE_BYTES: Final = 1 << 28  # of the states of all writers
PERSONAL: Final = frozenset({"aeslc", "blogs", "selfdialogue", "sms", "spamassassin"})
"""Sources with several documents of a writer one after another."""
DOCUMENTS: Final = 500  # most earlier documents of a history
HISTORY: Final = 16_000  # its characters
TOGETHER: Final = 64  # texts scored at the same time, writers who type

Texts = Mapping[str, Sequence[str]]
"""The documents of each source."""


def suggest_with(predictor: LanguageModelPredictor, *, adapt: bool = False) -> Suggest:
    """Return a function that answers queries with the model's suggestions, as POST /next-word does.

    `adapt`: words that the writer has written before are likelier.
    """

    def suggest(queries: Sequence[Query]) -> list[list[str]]:
        payloads = [
            Payload(
                query.context + query.typed,
                OFFERED,
                complete=bool(query.typed),
                history=query.history if adapt else "",
                adapt=adapt,
            )
            for query in queries
        ]
        answers = answer_all(predictor, [predictor.prepare(payload) for payload in payloads])
        suggested = []
        for query, answer in zip(queries, answers, strict=True):
            within = query.typed and query.context and not query.context[-1].isspace()
            repeated = query.context.split()[-1] if within else ""  # such as a bracket
            suggested.append([suggestion.text.removeprefix(repeated) for suggestion in answer.suggestions])
        return suggested

    return suggest


def bits(predictor: LanguageModelPredictor, texts: Sequence[str]) -> list[float]:
    """Return -log2 p of each text and its end, unknown words by their letters, as POST /perplexity scores it."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # of about equal length together
    found: dict[int, float] = {}
    for start in range(0, len(order), TOGETHER):
        group = order[start : start + TOGETHER]
        scores = answer_all(predictor, [predictor.prepare(Score(texts[number])) for number in group])
        totals = [score.log_likelihood + score.log_likelihood_spelling for score in scores]
        found |= {number: -total / math.log(2) for number, total in zip(group, totals, strict=True)}
    return [found[number] for number in range(len(texts))]


def size(text: str) -> int:
    """Return the bytes of a document, its last line end included."""
    return len(text.encode()) + 1


def validation_sample(folders: Sequence[Path], most_words: int | None, only: Sequence[str] = ()) -> Texts:
    """Return validation documents of each source: all, or every n-th of them, about `most_words` words.

    `only`: of these sources, of all if empty. Raise CorpusError if a source is missing.
    """
    files = text_files(folders)["valid"]
    for name in only:
        if name not in files:
            raise CorpusError(f"source: expected one of {', '.join(sorted(files))}, found {name!r}")
    return {name: thinned(list(documents(name, files[name])), most_words) for name in sorted(only or files)}


def thinned(texts: Sequence[str], most_words: int | None) -> Sequence[str]:
    """Return every n-th text, so that they have about `most_words` words; all for None."""
    return texts if most_words is None else texts[:: max(1, sum(len(text.split()) for text in texts) // most_words)]


def beginnings(texts: Sequence[str], most_words: int) -> list[str]:
    """Return the texts, each up to `most_words` words: every keystroke in a longer one reads all of it again."""
    return [found[0] for text in texts if (found := re.match(rf"(?:\s*\S+){{1,{most_words}}}", text))]


def earlier_texts(folders: Sequence[Path], texts: Texts) -> Texts:
    """Return for each text the HISTORY characters before it in its source, "" where writers differ."""
    files = text_files(folders)["valid"]
    found: dict[str, list[str]] = {}
    for name, some in texts.items():
        every = list(documents(name, files[name])) if name in PERSONAL else []
        indices = {text: index for index, text in enumerate(every)}
        before = [every[max(indices[text] - DOCUMENTS, 0) : indices[text]] if every else [] for text in some]
        found[name] = ["\n".join(earlier)[-HISTORY:] for earlier in before]
    return found


def evaluate_typing(predictor: LanguageModelPredictor, texts: Texts, *, histories: Texts | None = None) -> TypingReport:
    """Let simulated writers type the texts, and score each of them as a document of its own.

    `histories`: of the texts' writers; the suggestions, not the scores, are adapted to them and to the text itself. A
    closed vocabulary's scores are left out: its `<unk>` stands for many words, so they are no likelihood of a text.
    """
    suggest = suggest_with(predictor, adapt=histories is not None)
    before = [text for some in histories.values() for text in some] if histories else None
    named = [(name, text) for name, some in texts.items() for text in some]
    every = [text for _, text in named]
    with tqdm(total=sum(map(len, every)), desc="typing", unit="character", disable=None) as bar:
        typed = measure(every, suggest, histories=before, batch_size=TOGETHER, progress=bar.update)
    if predictor.tokenizer.unknown is None:
        scored = zip(bits(predictor, every), every, strict=True)
        sizes = [Counts(bits=found, bytes=size(text), spaced_words=len(text.split())) for found, text in scored]
        typed = [counts + more for counts, more in zip(typed, sizes, strict=True)]
    sources: dict[str, list[Counts]] = {name: [] for name in texts}
    for (name, _), counts in zip(named, typed, strict=True):
        sources[name].append(counts)
    return TypingReport(sources)


def bits_a_byte(predictor: LanguageModelPredictor) -> Callable[[Sequence[str]], list[float]]:
    """Return a function from texts to their bits a byte: fewer for English than for other texts."""

    def found(texts: Sequence[str]) -> list[float]:
        return [value / len(text.encode()) for value, text in zip(bits(predictor, texts), texts, strict=True)]

    return found
