"""Raw text <-> normalised tokens with offsets <-> ids; the vocabulary."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice, pairwise
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

END = "<eos>"
UNKNOWN = "<unk>"

_CHUNK = re.compile(r"\S+")
_WORDED = re.compile(r"[^\W_]")
_LINE = re.compile(r"([^\r\n]+)(?:\r\n?|\n)?|\r\n?|\n")
_WRITTEN_LINE = re.compile(r"(\S[^\r\n]*)")  # from a line's first character that is no space: the last took its line
_LAST_CHARACTER = "\U0010ffff"
_NO_IDS: Final = np.empty(0, np.int64)

# The Penn Treebank's conventions.
NUMBER = "N"  # stands for every number
PERCENT = "%"  # `12 %` became `N N` when the corpus was made: its `rose N N` stands there 322 times, `rose N in` never
POUND = "#"  # the pound sterling; in everyday text the same sign before figures is short for `no.`
CLITICS = frozenset({"n't", "'s", "'re", "'ve", "'m", "'ll", "'d", "'"})

_LONGEST = 1000  # characters of a chunk that is looked into: no word is longer, and a megabyte would take seconds
_PATIENCE = 16  # lines without tokens, about 1 us each, before who waits for a sentence is told
_SHORT, _REMEMBERED = 32, 4096  # chunks of so many characters are remembered with their tokens, so many of them

# Folding, a character at a time: what compatibility decomposition (NFKD) does not make plain.
_FOLDS = (
    dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc\u00b4\u2032", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | {"\u2026": "...", "\u2044": "/"}
)
_DROPPED = ("Mn", "Mc", "Me", "Cf")  # accents, joiners, soft hyphens, byte order marks

# A chunk is one unknown word if it holds a letter that is not Latin, or is an address on the net.
_FOREIGN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff\u2150-\u215f]")
_ADDRESS = re.compile(r"://|@|\bwww\.|\.(?:com|org|net|edu|gov)\b", re.IGNORECASE)

# Any other chunk is signs and words; what stands between them is dropped. A word may hold `-` `/` `'` and the like
# between two letters or figures, `,` and `:` between two figures, and end with one period or apostrophe.
_LETTER, _FIGURE = r"[^\W_]", r"[\d\u00bc-\u00be\u2150-\u215e]"  # figures are fractions too
_MONEY = r"$\u00a2-\u00a5\u20a0-\u20c0"
_PIECE = re.compile(
    rf"(?P<sign>(?:us|hk|[acm])?\$|[{_MONEY}]|{POUND}(?=\d)|(?<=\d)%|^%$|&|{UNKNOWN})"
    rf"|(?P<word>'?{_LETTER}+(?:(?:\.?-|\\?/|[.&'_]|(?<=\d)[,:](?=\d)){_LETTER}+)*[.']?)",
    re.IGNORECASE,
)
_SIGNS = {"\u00a3": POUND, POUND: "no.", PERCENT: NUMBER}
_CURRENCY = re.compile(rf"[a-z]*[{_MONEY}]|{POUND}")
_NUMBER = re.compile(rf"{_FIGURE}+(?:(?:\\?/|[-.,:]){_FIGURE}+)*k?")
_DOTTED = re.compile(r"(?:[a-z]\.)+[a-z]?")
_CLITIC = re.compile(r"n't|'(?:[smd]|re|ve|ll)|(?<=^can)not", re.IGNORECASE)
_UNITS = {"am": "a.m.", "pm": "p.m.", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
_MONEY_UNITS = ("m", "b")  # metres or bytes, unless a currency sign stands before the figures
_AMOUNT = re.compile(rf"(?P<figures>\d[\d.,:]*)(?P<unit>{'|'.join(_UNITS)})", re.IGNORECASE)
_SLASHED = re.compile(r"[^\\/]+")

# How a person types a token. Abbreviations are names and titles and have a capital, but for the few ruled out here. May
# and March are left out of the months: they are words too.
_CAPITALISED = re.compile(
    r"i|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|april|june|july|august|(?:sept|nov|dec)ember|october"
    r"|(?!etc|vs)[a-z]+\."
)
_CAPITALS = re.compile(r"(?![ap]\.m)(?:[a-z]\.)+[a-z]?|at&t|[a-z]&[a-z]|[a-z]{1,2}\$")  # u.s. n.j s&p us$

# Where a word being typed may begin inside a chunk.
_OPENING = re.compile(rf"""["“„«(\[{{<—*{_MONEY}]|/(?={_LETTER})|(?<![^\W_.])'""")
_CLITIC_BEGUN = re.compile(rf"(?:(?<={_LETTER})|(?<={_LETTER}\.))('[a-z]{{0,2}})$", re.IGNORECASE)
_NEGATION_BEGUN = re.compile(
    r"\b(?:is|are|was|were|do|does|did|has|have|had|ca|could|wo|would|should|might|must|need|ai)(n't?)$", re.IGNORECASE
)


class Vocabulary:
    """The tokens a model knows; a token's id is its place. `<eos>` and `<unk>` are always among them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Raise ValueError for a repeated or missing token."""
        self.tokens = tuple(tokens)
        self.index = {token: place for place, token in enumerate(self.tokens)}
        if len(self.index) != len(self.tokens):
            raise ValueError(f"vocabulary: {len(self.tokens) - len(self.index)} tokens stand in it twice")
        for special in (END, UNKNOWN):
            if special not in self.index:
                raise ValueError(f"vocabulary: {special} is missing")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def end(self) -> int:
        """The id of `<eos>`."""
        return self.index[END]

    @cached_property
    def unknown(self) -> int:
        """The id of `<unk>`."""
        return self.index[UNKNOWN]

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of the tokens, that of `<unk>` for those not known."""
        index, unknown = self.index, self.unknown
        return [index.get(token, unknown) for token in tokens]


class Token(NamedTuple):
    """A normalised token and where it stands in the text as sent; an `<eos>` has start == end."""

    text: str
    start: int
    end: int


WORDLESS: Final[Iterator[Token]] = iter(())  # stands among sentences for lines without tokens


class Normaliser(Protocol):
    """One corpus's conventions. The tokens of a chunk (a run of non-space characters) depend on that chunk alone."""

    keeps_blank_lines: bool  # whether a line without tokens is a sentence of its own, an `<eos>`

    def tokens(self, line: str, offset: int = 0) -> Iterator[Token]:
        """The tokens of one line without its line break, no `<eos>`; `offset` is where the line begins in its text.

        One at a time, since a line may be as long as a text.
        """
        ...

    def texts(self, line: str) -> list[str]:
        """The texts of `tokens(line)`, which are made sooner without their places."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """A run of tokens as a person would type it."""
        ...

    def complete(self, text: str) -> "Completion":
        """The words that the last run of non-space characters of `text` may become, and what stands before them."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A word being typed at the end of a text."""

    before: str  # the text up to the last run of non-space characters
    begun: list[Token]  # tokens of that run that stand before the word, such as the host of a clitic
    candidates: Ids | None  # of the words that it may become; None: any word
    typed: str  # the last run of non-space characters, as sent; it may begin before the word
    prefix: str  # the word's beginning, in the characters that the vocabulary is written in
    normaliser: Normaliser

    @property
    def context(self) -> list[Token]:
        """What stands before the word."""
        return [*context(self.before, self.normaliser), *self.begun]

    @property
    def context_texts(self) -> list[str]:
        """The texts of `context`."""
        return [*context_texts(self.before, self.normaliser), *(token.text for token in self.begun)]

    def text(self, tokens: Sequence[str]) -> str:
        """`tokens`, whose first is a candidate, as they would be typed on: always begins with `typed`."""
        first = self.normaliser.join(tokens[:1])
        return self.word(first) + self.normaliser.join(tokens)[len(first) :]

    def word(self, written: str) -> str:
        """The same of a candidate alone, as it is written elsewhere."""
        if not written.startswith(self.prefix):
            written = written.upper() if len(self.prefix) > 1 and self.prefix.isupper() else written.lower()
        return self.typed + written[len(self.prefix) :]


def normaliser(name: str, vocabulary: Vocabulary) -> Normaliser:
    """The normaliser of this name; ValueError if there is none."""
    if name not in NORMALISERS:
        raise ValueError(f"normalisation: expected one of {', '.join(NORMALISERS)}, found {name!r}")
    return NORMALISERS[name](vocabulary)


def lines(text: str, *, blank: bool = True) -> Iterator[tuple[str, int]]:
    r"""Each line without its break, and its offset. Only \r\n, \n and \r break; a final break opens no further line.

    Where the `blank` are not wanted they cost next to nothing, and a line begins at its first character but for space.
    """
    for match in (_LINE if blank else _WRITTEN_LINE).finditer(text):
        yield match[1] or "", match.start()


def sentences(lines: Iterable[tuple[str, int]], normaliser: Normaliser) -> Iterator[Iterator[Token]]:
    """The tokens of each line and the `<eos>` at its end, one line and one token at a time.

    After so many lines without tokens comes `WORDLESS`, so that nobody waits without limit for the next that has some.
    """
    wordless = 0
    for line, offset in lines:
        tokens = normaliser.tokens(line, offset)
        first = list(islice(tokens, 1))
        if first or normaliser.keeps_blank_lines:
            end = offset + len(line)
            yield chain(first, tokens, [Token(END, end, end)])
        else:
            wordless += 1
            if wordless % _PATIENCE == 0:
                yield WORDLESS


def context(text: str, normaliser: Normaliser) -> list[Token]:
    """The tokens before the next word: those of all sentences, the last not ended unless `text` ends with a break."""
    tokens = list(chain.from_iterable(sentences(lines(text, blank=normaliser.keeps_blank_lines), normaliser)))
    if tokens and tokens[-1].start == len(text):  # the `<eos>` of a last line that goes on
        tokens.pop()
    return tokens


def context_texts(text: str, normaliser: Normaliser) -> list[str]:
    """The texts of `context`."""
    found: list[str] = []
    for line, offset in lines(text, blank=normaliser.keeps_blank_lines):
        texts = normaliser.texts(line)
        if texts or normaliser.keeps_blank_lines:
            goes_on = offset + len(line) == len(text)
            found += texts if goes_on else [*texts, END]
    return found


class _WordList:
    """Written words in alphabetical order, for finding those that begin with a prefix."""

    def __init__(self, words: Iterable[tuple[str, int]]) -> None:
        """Words as they are written, with their ids."""
        ordered = sorted(words)
        self._words = [word for word, _ in ordered]
        self._ids = np.array([place for _, place in ordered], np.int64)
        self._ids.setflags(write=False)  # parts of it are given away
        self.longest = max(map(len, self._words), default=0)

    def starting(self, prefix: str) -> Ids:
        """Ids of the words that begin with `prefix`."""
        first = bisect_left(self._words, prefix)
        return self._ids[first : bisect_left(self._words, prefix + _LAST_CHARACTER, first)]


class Whitespace:
    """Tokens are the chunks as they are: for corpora that come tokenised, such as WikiText."""

    keeps_blank_lines = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        words = vocabulary.index.items()
        self._words = _WordList((token, place) for token, place in words if token not in (END, UNKNOWN))

    def tokens(self, line: str, offset: int = 0) -> Iterator[Token]:
        """The chunks of the line."""
        for match in _CHUNK.finditer(line):
            yield Token(match[0], offset + match.start(), offset + match.end())

    def texts(self, line: str) -> list[str]:
        """The chunks of the line."""
        return line.split()

    def join(self, tokens: Sequence[str]) -> str:
        """The tokens, a space between."""
        return " ".join(tokens)

    def complete(self, text: str) -> Completion:
        """Words that begin with the last chunk, case and all."""
        before, typed = _split_typed(text)
        candidates = self._words.starting(typed) if typed else None
        return Completion(before, [], candidates, typed, typed, self)


class PennTreebank:
    """Everyday English -> the conventions of the Penn Treebank as Mikolov prepared it.

    Lower case; numbers are `N`, and so is the sign of percent; clitics stand alone (`do n't`, `company 's`);
    punctuation is dropped but for currency signs, `&` and the periods of abbreviations. What the vocabulary knows as
    it stands passes unchanged, so the corpus does. A word in no known spelling keeps its own in lower case, to be
    told to the user: its id is that of `<unk>`. An unknown compound (`computer-aided`) stays one word, as in the
    corpus: split, it would make even the words after it less likely.
    """

    keeps_blank_lines = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._known = vocabulary.index.keys() - {END}  # an `<eos>` that somebody typed ends nothing
        words = {token: place for token, place in vocabulary.index.items() if token not in (END, UNKNOWN, NUMBER)}
        signs = {character for token in self._known if not _WORDED.search(token) for character in token}
        worded = rf"(?:{_WORDED.pattern}|[{re.escape(''.join(signs))}{_MONEY}%&#']|[^\x00-\x7f\u2000-\u206f])"
        # Chunks that may hold a token: all but those of ASCII's and Unicode's general punctuation, megabytes of which
        # would take seconds one by one. Atomic, so that each character of a long run of dashes is looked at once
        # (possessive, it loses chunks of one character on Python 3.11.2).
        self._worded = re.compile(rf"(?<!\S)(?>(?:(?!{worded})\S)*){worded}\S*")
        self._words = _WordList((_written(token).lower(), place) for token, place in words.items())
        self._clitics = _WordList((token, place) for token, place in words.items() if token in CLITICS)
        self._remembered = lru_cache(_REMEMBERED)(lambda chunk: tuple(self._read(chunk)))

    def tokens(self, line: str, offset: int = 0) -> Iterator[Token]:
        """The tokens of each chunk in turn; a chunk of mere punctuation has none, one of great length is one."""
        known = self._known
        for match in self._worded.finditer(line):
            chunk, at = match[0], offset + match.start()
            if chunk in known or len(chunk) > _LONGEST:
                yield Token(chunk, at, at + len(chunk))
            else:
                yield from self._chunk(chunk, at)

    def texts(self, line: str) -> list[str]:
        """The same without their places."""
        if self._known.issuperset(chunks := line.split()):
            return chunks
        found: list[str] = []
        for chunk in self._worded.findall(line):
            if chunk in self._known or len(chunk) > _LONGEST:
                found.append(chunk)
            else:
                found += [text for text, _, _ in self._pieces_of(chunk)]
        return found

    def join(self, tokens: Sequence[str]) -> str:
        """Clitics and the figures after a currency sign attached; what English always capitalises, capitalised."""
        typed: list[str] = []
        previous = ""
        for token in tokens:
            price = _CURRENCY.fullmatch(previous) and (token == NUMBER or token[:1].isdigit())
            typed.append(_written(token) if price or token in CLITICS or not typed else " " + _written(token))
            previous = token
        return "".join(typed)

    def complete(self, text: str) -> Completion:
        """Words that begin with what was typed, in any case, be it after an opening quote or a clitic's word."""
        before, typed = _split_typed(text)
        if len(typed) > _LONGEST:
            return Completion(before, [], _NO_IDS, typed, typed, self)
        folded, origin = _fold(typed)
        for cut, words in self._cuts(folded):
            prefix = folded[cut:]
            candidates = words.starting(prefix.lower()) if prefix else None
            if candidates is None or len(candidates):
                begun = list(self._chunk(typed[: origin[cut]], len(before)))
                return Completion(before, begun, candidates, typed, prefix, self)
        return Completion(before, [], _NO_IDS, typed, folded, self)

    def _cuts(self, folded: str) -> Iterator[tuple[int, _WordList]]:
        """Where the word being typed may begin, the longest reading first, and the list to find it in."""
        window = max(0, len(folded) - self._words.longest)  # no word that begins before it could be known
        if not window:
            yield 0, self._words
        for begun in (_NEGATION_BEGUN, _CLITIC_BEGUN):
            if match := begun.search(folded, window):
                yield match.start(1), self._clitics
        for match in _OPENING.finditer(folded, window):
            yield match.end(), self._words

    def _chunk(self, chunk: str, at: int) -> Iterator[Token]:
        """The tokens of a chunk that is not known as it stands; `at` is where it begins in its text."""
        for text, start, end in self._pieces_of(chunk):
            yield Token(text, at + start, at + end)

    def _pieces_of(self, chunk: str) -> Iterable[Token]:
        """The same with offsets into the chunk."""
        return self._remembered(chunk) if len(chunk) <= _SHORT else self._read(chunk)

    def _read(self, chunk: str) -> Iterator[Token]:
        """The same, found out."""
        folded, origin = _fold(chunk)
        whole = _FOREIGN.search(folded) or _ADDRESS.search(folded)
        for text, start, end in _whole(chunk, folded, origin) if whole else self._pieces(folded):
            yield Token(text, origin[start], origin[end])

    def _pieces(self, folded: str) -> Iterator[Token]:
        """The signs and words of a folded chunk, with offsets into it."""
        money = -1  # where the last currency sign ended: figures that begin there are an amount
        for match in _PIECE.finditer(folded):
            piece, start, end = match[0], match.start(), match.end()
            if match.lastgroup == "word":
                yield from self._word(piece, start, money == start)
            else:
                sign = _SIGNS.get(piece, piece.lower())
                money = end if _CURRENCY.fullmatch(sign) else -1
                yield Token(sign, start, end)

    def _word(self, word: str, at: int, money: bool) -> Iterator[Token]:
        """A word's tokens: its known spelling, else that without period and quotes, else its parts."""
        if spelling := self._spelling(word):
            yield Token(spelling, at, at + len(word))
        elif word.endswith("."):
            yield from self._word(word[:-1], at, money)
        elif word.endswith("'"):
            yield from self._word(word[:-1], at, money)
            if word[-2] in "sS" and word[0] != "'":  # workers', but not 'workers'
                yield Token("'", at + len(word) - 1, at + len(word))
        elif word[0] == "'":
            yield from self._word(word[1:], at + 1, money)
        else:
            yield from self._parts(word, at, money)

    def _parts(self, word: str, at: int, money: bool) -> Iterator[Token]:
        """Host and clitics, figures and unit, or what slashes part; else the word itself, unknown."""
        end = at + len(word)
        if cuts := _clitic_cuts(word):
            yield from self._word(word[: cuts[0]], at, money)
            for first, last in pairwise([*cuts, len(word)]):
                yield Token(word[first:last].lower(), at + first, at + last)
        elif (amount := _AMOUNT.fullmatch(word)) and (money or amount["unit"].lower() not in _MONEY_UNITS):
            yield Token(NUMBER, at, at + amount.end("figures"))
            yield Token(_UNITS[amount["unit"].lower()], at + amount.end("figures"), end)
        elif "/" in word:
            for part in _SLASHED.finditer(word):
                yield from self._word(part[0], at + part.start(), money=False)
        else:
            yield Token(word.lower(), at, end)

    def _spelling(self, word: str) -> str | None:
        """The word as the corpus spells it, if it knows it."""
        known = (spelling for spelling in _spellings(word) if spelling in self._known)
        return next(known, NUMBER if _NUMBER.fullmatch(word.lower()) else None)


NORMALISERS: dict[str, Callable[[Vocabulary], Normaliser]] = {"ptb": PennTreebank, "whitespace": Whitespace}


def _split_typed(text: str) -> tuple[str, str]:
    """What stands before the last run of non-space characters, and that run; it is empty after a space."""
    if not text or text[-1].isspace():
        return text, ""
    typed = text.rsplit(maxsplit=1)[-1]
    return text[: len(text) - len(typed)], typed


def _fold(chunk: str) -> tuple[str, Sequence[int]]:
    """The chunk in plain characters, and for each of them (and the end) where it comes from in the chunk."""
    if chunk.isascii():
        return chunk, range(len(chunk) + 1)
    folded = [_fold_character(character) for character in chunk]
    return "".join(folded), [*(place for place, plain in enumerate(folded) for _ in plain), len(chunk)]


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    """Its plain form: an ASCII quote or hyphen, a letter without its accent, nothing for what is only an accent."""
    if character in _FOLDS:
        return _FOLDS[character]
    kept = [c for c in unicodedata.normalize("NFKD", character) if unicodedata.category(c) not in _DROPPED]
    plain = "".join(kept)
    splits = len(kept) > 1 and not plain.isalnum()  # one character must not become two tokens
    return character if splits or plain.isspace() else plain


def _whole(chunk: str, folded: str, origin: Sequence[int]) -> Iterator[Token]:
    """One token from the first letter or figure to the last, in the chunk's own characters."""
    letters = [place for place, character in enumerate(folded) if character.isalnum()]
    if letters:
        start, end = letters[0], letters[-1] + 1
        yield Token(chunk[origin[start] : origin[end]].lower(), start, end)


def _clitic_cuts(word: str) -> list[int]:
    """Where the clitics at the word's end begin: 5 and 8 in wouldn't've."""
    cuts = [len(word)]
    for match in reversed(list(_CLITIC.finditer(word, 1))):
        if match.end() != cuts[-1]:
            break
        cuts.append(match.start())
    return cuts[:0:-1]


def _spellings(word: str) -> Iterator[str]:
    """How the corpus may spell a word, the likeliest first."""
    lower = word.lower()
    dotted = "".join(f"{letter}." for letter in lower) if 1 < len(word) <= 4 else lower
    yield word  # N
    if word.isupper():
        yield dotted  # US is the country
    yield lower
    yield lower + "."  # Mr, U.S
    yield dotted  # uk, pm
    if _DOTTED.fullmatch(lower):
        yield lower.replace(".", "")  # I.B.M.
    yield lower.replace("/", r"\/")  # property/casualty


def _written(token: str) -> str:
    """A token as a person types it."""
    if _CAPITALS.fullmatch(token):
        return token.upper()
    if _CAPITALISED.fullmatch(token):
        return token.capitalize()
    return "\u00a3" if token == POUND else token.replace("\\", "")
