"""What captions are worth: the standard code's scores, and a fast CIDEr-D for rewards and validation."""

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
from training.captions.data import words

Tokenised: TypeAlias = dict[int, list[str]]  # by photograph, words parted by one space

ORDERS = 4  # CIDEr counts runs of one to four words
DEVIATION = 6.0  # of the Gaussian, in words, that CIDEr-D lowers a score with for another length


@dataclass(frozen=True)
class CaptionScores:
    """Scores in percent, as papers give them (CIDEr may exceed 100)."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float
    meteor: float | None  # None: not measured, for want of Java
    tokeniser: Literal["ptb", "own"]  # own: figures may differ a little from those of papers, for want of Java


def score(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, java: str | None = shutil.which("java")
) -> CaptionScores:
    """Score one caption a photograph against its references with pycocoevalcap, all as written.

    Without `java`, the path of its command, METEOR is left out and words are parted by our own tokeniser; the answer
    says so. Raise CorpusError if there are no captions, or not as many as lists of references.
    """
    if not captions or len(captions) != len(references):
        raise CorpusError(f"scores: expected captions for {len(references)} photographs, found {len(captions)}")
    tokenise = _penn_treebank if java else _own
    said = tokenise([[caption] for caption in captions])
    expected = tokenise(references)
    bleu, _ = Bleu(ORDERS).compute_score(expected, said, verbose=0)
    rouge, _ = Rouge().compute_score(expected, said)
    cider, _ = Cider().compute_score(expected, said)
    meteor = _meteor(expected, said) if java else None
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
    a run of tokens stands with decides its weight. A score is 0 to 10.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        counted = [[_runs(caption) for caption in captions] for captions in references]
        frequency = Counter[_Run]()
        for captions in counted:
            frequency.update(set().union(*captions))
        self._rarest = math.log(len(references))
        self._rarity = {run: self._rarest - math.log(count) for run, count in frequency.items()}
        self._references = [[self._weighted(runs) for runs in captions] for captions in counted]

    def __call__(self, photograph: int, caption: Sequence[Hashable]) -> float:
        """The score of a caption, given the place of its photograph among the references."""
        said = self._weighted(_runs(caption))
        references = self._references[photograph]
        return 10 * sum(_similarity(said, reference) for reference in references) / (ORDERS * len(references))

    def _weighted(self, runs: Mapping["_Run", int]) -> "_Weighted":
        orders: list[dict[_Run, float]] = [{} for _ in range(ORDERS)]
        for run, count in runs.items():
            orders[len(run) - 1][run] = count * self._rarity.get(run, self._rarest)
        norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in orders]
        return _Weighted(orders, norms, sum(count for run, count in runs.items() if len(run) == 2))


_Run: TypeAlias = tuple[Hashable, ...]


class _Weighted(NamedTuple):
    """A caption's runs with their weights, by length of run."""

    orders: list[dict[_Run, float]]
    norms: list[float]
    pairs: int  # how many runs of two there are: CIDEr-D's measure of length


def _runs(caption: Sequence[Hashable]) -> Counter[_Run]:
    tokens = tuple(caption)
    return Counter(
        tokens[start : start + length] for length in range(1, ORDERS + 1) for start in range(len(tokens) - length + 1)
    )


def _similarity(said: _Weighted, reference: _Weighted) -> float:
    """The sum over the lengths of runs of clipped cosines, lowered for a difference in length."""
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        said.orders, reference.orders, said.norms, reference.norms, strict=True
    ):
        shared = sum(min(ours[run], theirs[run]) * theirs[run] for run in ours.keys() & theirs.keys())
        if shared:
            total += shared / (our_norm * their_norm)
    return total * math.exp(-((said.pairs - reference.pairs) ** 2) / (2 * DEVIATION**2))


def _meteor(expected: Tokenised, said: Tokenised) -> float:
    """METEOR by its Java program, which pycocoevalcap leaves running and its pipes open."""
    judge = Meteor()
    with judge.meteor_p as program:
        value, _ = judge.compute_score(expected, said)
        program.kill()
    return float(value)


def _penn_treebank(captions: Sequence[Sequence[str]]) -> Tokenised:
    """The standard tokeniser, which wants a caption a line."""
    lines = {number: [{"caption": " ".join(c.split())} for c in group] for number, group in enumerate(captions)}
    tokenised: Tokenised = PTBTokenizer().tokenize(lines)
    return tokenised


def _own(captions: Sequence[Sequence[str]]) -> Tokenised:
    return {number: [" ".join(words(caption)) for caption in group] for number, group in enumerate(captions)}
