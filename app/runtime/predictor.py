"""The interface of a model to evaluation and to the scheduler: payloads in, scheduling steps, answers out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from app.bundle import Bundle
from app.errors import BundleError
from app.runtime.onnx_session import Precision
from app.text import TOKENIZERS, Tokenizer, read_tokenizer
from app.text.blocked_words import BLOCKED_WORDS

Payload = TypeVar("Payload", contravariant=True)
Example = TypeVar("Example")
Part = TypeVar("Part", covariant=True)
Answer = TypeVar("Answer", covariant=True)
ObserveCache: TypeAlias = Callable[[int, int], None]


class Partial(NamedTuple, Generic[Part, Answer]):
    """A partial answer: the parts that one step added to an example's answer, and the answer if it is complete."""

    parts: Sequence[Part]  # in order; not empty, unless the answer is there
    answer: Answer | None = None


class Predictor(Protocol[Payload, Example, Answer]):
    """A model behind the interface that evaluation and the server share.

    `prepare` validates one payload and raises for it alone. `step` advances a batch by one scheduling step and cannot
    fail for one member. It returns one of these per example:

    - the answer, never None;
    - a `Partial`, whose parts a streaming client gets at once: words that no further step changes. The last one may
      hold the answer too. The answer is always the whole one, with all parts in it, so that clients who do not stream
      lose nothing when the scheduler drops the parts;
    - None for an example that needs another step and has nothing to show yet: a long text read in chunks, or no room in
      this step (the first example always has room).

    An example with a Partial that holds no answer, or None, takes part in a later step. The scheduler composes that
    batch, so a short request never waits for a whole long one, and may run the step in another thread, but never two
    steps at once.
    """

    def prepare(self, payload: Payload) -> Example:
        """Validate one payload."""
        ...

    def step(self, examples: Sequence[Example]) -> Sequence[Answer | Partial[Any, Answer] | None]:
        """Run one step; return per example the answer, a partial answer, or None."""
        ...


def ignore(hit: int, read: int) -> None:
    """An ObserveCache that does nothing."""


@dataclass(frozen=True)
class Resources:
    """Machine resources of a predictor; a family without recurrent states to cache ignores `cache_bytes`."""

    threads: int = 1  # of inference
    cache_bytes: int = 0  # of the state cache
    tokenizers: Mapping[str, type[Tokenizer]] = field(default_factory=lambda: TOKENIZERS)  # by name in manifests
    observe_cache: ObserveCache = ignore  # called after a step with the context tokens found in the cache and read
    blocked: Set[str] = BLOCKED_WORDS  # case-folded words that are never suggested

    def tokenizer(self, bundle: Bundle, size: int) -> Tokenizer:
        """Read a bundle's tokenizer of `size` tokens. Raise BundleError unless the file is that of the manifest."""
        expected = bundle.manifest.vocabulary_sha256
        try:
            found = read_tokenizer(bundle.manifest.normalisation or "whitespace", bundle.text, self.tokenizers)
        except ValueError as error:
            raise BundleError(f"{bundle.folder}: {error}") from error
        path = bundle.path(found.FILE)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != expected:
            raise BundleError(f"{path}: expected the sha256 {expected}, found {sha256}")
        if len(found.strings) != size:
            raise BundleError(f"{path}: expected {size} tokens, found {len(found.strings)}")
        return found


class BundlePredictor(Predictor[Payload, Example, Answer], Protocol[Payload, Example, Answer]):
    """A predictor opened from a bundle and verified by the bundle's probe."""

    PROBE_TOLERANCE: ClassVar[float]  # of the probe's numbers: above processors' differences, below those of faults

    @property
    def precision(self) -> Precision:
        """The arithmetic of the graphs in use."""
        ...

    @property
    def fits_inline(self) -> Callable[[Sequence[Any]], bool] | None:
        """A function that returns whether one step over the batch is cheap enough to run inline on the event loop.

        None for a family whose steps never are.
        """
        ...

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> Self:
        """Open the bundle's graphs of this precision. Raise BundleError if they can't be run."""
        ...

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return the answer to `payload`, the fields of one of the family's payloads, as [text, number] pairs."""
        ...


def answer_all(predictor: Predictor[Any, Any, Any], examples: Sequence[Any]) -> list[Any]:
    """Run steps over all examples together until each has its answer, as evaluation and the command line do."""
    answers: dict[int, Any] = {}
    waiting = list(range(len(examples)))
    while waiting:
        outputs = predictor.step([examples[index] for index in waiting])
        found = [output.answer if isinstance(output, Partial) else output for output in outputs]
        answers.update({index: answer for index, answer in zip(waiting, found, strict=True) if answer is not None})
        waiting = [index for index in waiting if index not in answers]
    return [answers[index] for index in range(len(examples))]
