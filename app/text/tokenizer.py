"""The tokenizer protocol: text <-> token ids with character offsets, and the constraint of a partly typed word."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

NO_IDS: Final[Ids] = np.empty(0, np.int64)
NO_IDS.setflags(write=False)


class Token(NamedTuple):
    """A token of a text and its character offsets; the end of a sentence or of a text has start == end."""

    id: int
    text: str  # normalised; of a token outside the vocabulary its own
    start: int
    end: int


class Following(NamedTuple):
    """The tokens that may go on in a word.

    `ids` are the same for every prefix at its place, so that their log-probabilities can be cached; `places` are those
    of them that fit what is typed.
    """

    ids: Ids | None  # (M,) None: any that may be suggested
    whole: bool = False  # each of them is a whole word
    ends: bool = False  # the word may end here, if the next token is none of `ids`
    places: Ids | slice = slice(None)  # (N,) positions in `ids`
    covers: npt.NDArray[np.bool_] | None = None  # (N,) nothing typed is left after this one; None: after all
    stops: slice = slice(0)  # positions in `ids` of the tokens that end the sentence instead


class Prefix(Protocol):
    """The context before the next word of a text, and the constraint on the tokens of that word."""

    @property
    def ids(self) -> list[int]:
        """The ids of the context."""
        ...

    @property
    def unknown_words(self) -> list[str]:
        """Distinct words of the context outside the vocabulary, as typed."""
        ...

    @property
    def typed(self) -> bool:
        """True for a word to complete: probabilities are then relative to those of all words that fit."""
        ...

    def following(self, tokens: tuple[int, ...]) -> Following:
        """Return the tokens that may come after the first `tokens` of the word; cheap to ask again."""
        ...

    def after(self) -> "Prefix":
        """Return the constraint on the word after the next one; it has no `ids`."""
        ...

    def listed(self) -> "Prefix":
        """Return the same constraint, in which `Following.ids` are never None."""
        ...

    def text(self, tokens: Sequence[int]) -> str | None:
        """Return the word, or a run of words, as a person would type it; None if it may not be suggested."""
        ...


class Tokenizer(Protocol):
    """The conventions of one corpus or model."""

    FILE: ClassVar[str]  # of a bundle: the content that `parse` takes

    @property
    def strings(self) -> Sequence[str]:
        """The text of each id (V,)."""
        ...

    @property
    def end(self) -> int:
        """The id at the end of a sentence or of a text, read before a new one."""
        ...

    @property
    def sentence_ends(self) -> Ids:
        """The ids that end a sentence."""
        ...

    @property
    def unknown(self) -> int | None:
        """The id of all tokens outside the vocabulary; None if every text has its ids."""
        ...

    @classmethod
    def parse(cls, content: str) -> Self:
        """Read the content of `FILE`. Raise ValueError, KeyError or TypeError if it is something else."""
        ...

    def encode(
        self, text: str, offset: int = 0, *, ended: bool = False, inside_line: bool = False
    ) -> Iterator[Token | None]:
        """Yield the tokens of a text, with `ended` the end of its last sentence too; none for a text without tokens.

        `offset` is added to the tokens' offsets. Lazy; None marks the time that a part without tokens takes. Of a text
        cut after a line break, or before a single space and a word, the parts' tokens are those of the whole;
        `inside_line`: the text continues a line.
        """
        ...

    def sentences(self, text: str) -> Iterator[Iterator[Token | None]]:
        """Yield the tokens of each line that has some, the end included."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return a text that has these ids, if there is one."""
        ...

    def begins(self, ids: Ids) -> Flags:
        """Return for each token of a text (N,) whether it begins a word or is a sign, as none goes on in a word."""
        ...

    def prefix(self, text: str, *, complete: bool) -> Prefix:
        """Return the context of the next word; `complete`: the last run of non-space characters is a part of it."""
        ...
