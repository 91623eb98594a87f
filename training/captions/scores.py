"""Scores of captions: the standard metrics by pycocoevalcap, and a fast CIDEr-D for rewards and validation."""

import math
import shutil
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-untyped]
from pycocoevalcap.cider.cider import Cider  # type: ignore[import-untyped]
from pycocoevalcap.meteor.meteor import Meteor  # type: ignore[import-untyped]
from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import-untyped]
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # type: ignore[import-untyped]

from app.errors import CorpusError
from training.captions.vocabulary import words

Tokenised: TypeAlias = dict[int, list[str]]  # by photograph, words separated by one space

ORDERS = 4  # CIDEr counts n-grams of one to four words
DEVIATION = 6.0  # in words, of CIDEr-D's Gaussian penalty for a difference in length


@dataclass(frozen=True)
class CaptionScores:
    """Scores in percent, as papers give them (CIDEr may exceed 100)."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float
    meteor: float | None  # None: not measured, without Java
    tokeniser: Literal["ptb", "own"]  # own: without Java; scores may differ slightly from those of papers


def score(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, java: str | None = shutil.which("java")
) -> CaptionScores:
    """Score one caption a photograph against its references with pycocoevalcap; all are untokenized text.

    Without `java`, the path of its command, METEOR is left out and our own tokenizer is used; `tokeniser`
    of the result says so. Raise CorpusError if there are no captions, or not as many as lists of references.
    """
    if not captions or len(captions) != len(references):
        raise CorpusError(f"scores: expected captions for {len(references)} photographs, found {len(captions)}")
    candidate = _tokenised([[caption] for caption in captions], standard=bool(java))
    expected = _tokenised(references, standard=bool(java))
    bleu, _ = Bleu(ORDERS).compute_score(expected, candidate, verbose=0)
    rouge, _ = Rouge().compute_score(expected, candidate)
    cider, _ = Cider().compute_score(expected, candidate)
    meteor = _meteor(expected, candidate) if java else None
    return CaptionScores(
        bleu_1=100 * bleu[0],
        bleu_2=100 * bleu[1],
        bleu_3=100 * bleu[2],
        bleu_4=100 * bleu[3],
        rouge_l=100 * rouge,
        cider=100 * float(cider),
        meteor=None if meteor is None else 100 * meteor,
        tokeniser="ptb" if java else "own",
    )


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of one caption at a time, as pycocoevalcap's `Cider` has it.

    `references` are the captions of every photograph, a caption a sequence of tokens of any kind; how many photographs
    have an n-gram in their references decides its weight. A score is 0 to 10.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        counted = [[_ngrams(caption) for caption in captions] for captions in references]
        frequency = Counter[_NGram]()
        for captions in counted:
            frequency.update(set().union(*captions))
        self._rarest = math.log(len(references))
        self._rarity = {ngram: self._rarest - math.log(count) for ngram, count in frequency.items()}
        self._references = [[self._weighted(ngrams) for ngrams in captions] for captions in counted]

    def __call__(self, photograph: int, caption: Sequence[Hashable]) -> float:
        """Score a caption; `photograph` is the index of its references."""
        candidate = self._weighted(_ngrams(caption))
        references = self._references[photograph]
        return 10 * sum(_similarity(candidate, reference) for reference in references) / (ORDERS * len(references))

    def _weighted(self, ngrams: Mapping["_NGram", int]) -> "_Weighted":
        orders: list[dict[_NGram, float]] = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams.items():
            orders[len(ngram) - 1][ngram] = count * self._rarity.get(ngram, self._rarest)
        norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in orders]
        return _Weighted(orders, norms, sum(count for ngram, count in ngrams.items() if len(ngram) == 2))


_NGram: TypeAlias = tuple[Hashable, ...]


class _Weighted(NamedTuple):
    """A caption's weighted n-grams, by n."""

    orders: list[dict[_NGram, float]]
    norms: list[float]
    pairs: int  # number of bigrams: CIDEr-D's measure of length


def _ngrams(caption: Sequence[Hashable]) -> Counter[_NGram]:
    tokens = tuple(caption)
    return Counter(
        tokens[start : start + length] for length in range(1, ORDERS + 1) for start in range(len(tokens) - length + 1)
    )


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """Clipped cosine similarities summed over n, with the penalty for a difference in length."""
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        candidate.orders, reference.orders, candidate.norms, reference.norms, strict=True
    ):
        shared = sum(min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in ours.keys() & theirs.keys())
        if shared:
            total += shared / (our_norm * their_norm)
    return total * math.exp(-((candidate.pairs - reference.pairs) ** 2) / (2 * DEVIATION**2))


def _meteor(expected: Tokenised, candidate: Tokenised) -> float:
    """METEOR by its Java program; pycocoevalcap leaves the process running and its pipes open."""
    scorer = Meteor()
    with scorer.meteor_p as program:
        value, _ = scorer.compute_score(expected, candidate)
        program.kill()
    return float(value)


def _tokenised(captions: Sequence[Sequence[str]], *, standard: bool) -> Tokenised:
    """Captions tokenized by the standard tokenizer, which takes a caption a line, or by our own."""
    if not standard:
        return {number: [" ".join(words(caption)) for caption in group] for number, group in enumerate(captions)}
    lines = {number: [{"caption": " ".join(c.split())} for c in group] for number, group in enumerate(captions)}
    tokenised: Tokenised = PTBTokenizer().tokenize(lines)
    return tokenised
