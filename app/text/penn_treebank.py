"""The Penn Treebank tokenizer: everyday text in the conventions of Mikolov's preparation of the corpus."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

from app.text.characters import APOSTROPHES, SEPARATORS, unescaped_characters
from app.text.tokenizer import NO_IDS
from app.text.word_list import WordList
from app.text.words import END, PAUSE, UNKNOWN, Completion, Vocabulary, Word, WordTokenizer, split_typed, windows

_WORDED = re.compile(r"[^\W_]")

# The Penn Treebank's conventions.
NUMBER = "N"  # stands for every number
PERCENT = "%"  # `12 %` became `N N` in the corpus: it has `rose N N` 322 times, `rose N in` never
POUND = "#"  # the pound sterling; in everyday text `#` before digits means `no.`
CLITICS = frozenset({"n't", "'s", "'re", "'ve", "'m", "'ll", "'d", "'"})

_LONGEST = 1000  # characters; a longer chunk is one token: no word is longer, and a megabyte would take seconds
_SHORT, _CACHED = 32, 4096  # the tokens of chunks up to this many characters are cached, for this many chunks

# Folding by character, beyond compatibility decomposition (NFKD).
_FOLDS = (
    dict.fromkeys(APOSTROPHES, "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys(SEPARATORS, " ")
    | {"\u2026": "...", "\u2044": "/"}
)
_DROPPED = ("Mn", "Mc", "Me", "Cf")  # accents, joiners, soft hyphens, byte order marks

# A chunk is one unknown word if it holds a letter that is not Latin, or is an address on the net.
_FOREIGN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff\u2150-\u215f]")
_ADDRESS = re.compile(r"://|@|\bwww\.|\.(?:com|org|net|edu|gov)\b", re.IGNORECASE)

# Any other chunk is signs and words; other characters between them are dropped. A word may contain `-` `/` `'` and the
# like between two letters or digits, `,` and `:` between two digits, and end with one period or apostrophe.
_LETTER, _FIGURE = r"[^\W_]", r"[\d\u00bc-\u00be\u2150-\u215e]"  # digits and fractions
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
# A period without a space after it: before a capital (grew.It, J.Smith), or between two words, if both are known.
_GLUED = re.compile(
    r"\.(?=[A-Z][a-z]|(?<=[a-z0-9]\.)[IA]\b)|(?<![^\W_])(?P<before>[^\W\d_]{2,})\.(?=(?P<after>[^\W\d_]{2,})(?![^\W_]))"
)
_CLITIC = re.compile(r"n't|'(?:[smd]|re|ve|ll)|(?<=^can)not", re.IGNORECASE)
_UNITS = {"am": "a.m.", "pm": "p.m.", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
_MONEY_UNITS = ("m", "b")  # metres or bytes, unless the number follows a currency sign
_AMOUNT = re.compile(rf"(?P<figures>\d[\d.,:]*)(?P<unit>{'|'.join(_UNITS)})", re.IGNORECASE)
_SLASHED = re.compile(r"[^\\/]+")
_PART = re.compile(r"\S+")

# Capitalisation of tokens for display. Abbreviations are names and titles and have a capital, with few exceptions. May
# and March are not among the months: they are words too.
_CAPITALISED = re.compile(
    r"i|(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|april|june|july|august|(?:sept|nov|dec)ember|october"
    r"|(?!etc|vs)[a-z]+\."
)
_CAPITALS = re.compile(r"(?![ap]\.m)(?:[a-z]\.)+[a-z]?|at&t|[a-z]&[a-z]|[a-z]{1,2}\$")  # u.s. n.j s&p us$

# Possible starts of the word being typed inside a chunk.
_OPENING = re.compile(rf"""["“„«(\[{{<—*{_MONEY}]|[/,;!?\s](?={_LETTER})|\.(?=[A-Z])|(?<![^\W_.])'""")
_CLITIC_STARTED = re.compile(rf"(?:(?<={_LETTER})|(?<={_LETTER}\.))('[a-z]{{0,2}})$", re.IGNORECASE)
_NEGATION_STARTED = re.compile(
    r"\b(?:is|are|was|were|do|does|did|has|have|had|ca|could|wo|would|should|might|must|need|ai)(n(?:'t?)?)$",
    re.IGNORECASE,
)


class PennTreebank(WordTokenizer):
    """Everyday English -> the conventions of the Penn Treebank as Mikolov prepared it.

    Lower case; numbers and the percent sign are `N`; clitics are tokens (`do n't`, `company 's`); punctuation is
    dropped except currency signs, `&` and the periods of abbreviations. Chunks in the vocabulary pass unchanged, and so
    does the corpus. A word without a known spelling keeps its own in lower case, so that it can be reported to the
    user; its id is that of `<unk>`. An unknown compound (`computer-aided`) stays one word, as in the corpus: splitting
    it makes the words after it less likely.
    """

    keeps_blank_lines: ClassVar[bool] = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        self._known = vocabulary.index.keys() - {END}  # a typed `<eos>` ends no sentence
        words = {token: number for token, number in vocabulary.index.items() if token not in (END, UNKNOWN, NUMBER)}
        signs = {character for token in self._known if not _WORDED.search(token) for character in token}
        worded = rf"{_WORDED.pattern}|[{re.escape(''.join(signs))}{_MONEY}%&#']"
        # Chunks that may contain a token, unlike those of ASCII's and Unicode's general punctuation, whose megabytes
        # would take seconds one by one. Atomic, so that each character of a long run of dashes is matched once (a
        # possessive quantifier loses chunks of one character on Python 3.11.2).
        plain = (chr(code) for code in (*range(0x80), *range(0x2000, 0x2070)))
        unworded = "".join(each for each in plain if not (each.isspace() or re.match(worded, each)))
        self._worded = re.compile(rf"(?<!\S)(?>[{re.escape(unworded)}]*)\S+")
        self._words = WordList((_written(token).lower(), number) for token, number in words.items())
        self._clitics = WordList((token, number) for token, number in words.items() if token in CLITICS)
        self._cached = lru_cache(_CACHED)(lambda chunk: tuple(self._analysed(chunk)))

    def tokens(self, line: str, offset: int = 0) -> Iterator[Word]:
        """Yield the tokens of each chunk: none for mere punctuation, a single one for a very long chunk."""
        known = self._known
        for start, end in windows(line):
            if start:
                yield PAUSE
            for match in self._worded.finditer(line, start, end):
                chunk, at = match[0], offset + match.start()
                if chunk in known or len(chunk) > _LONGEST:
                    yield Word(chunk, at, at + len(chunk))
                else:
                    yield from self._chunk(chunk, at)

    def texts(self, line: str) -> list[str]:
        """Return the texts of `tokens`."""
        if self._known.issuperset(chunks := line.split()):
            return chunks
        found: list[str] = []
        for chunk in self._worded.findall(line):
            if chunk in self._known or len(chunk) > _LONGEST:
                found.append(chunk)
            else:
                found += [text for text, _, _ in self._chunk_tokens(chunk)]
        return found

    def join(self, tokens: Sequence[str]) -> str:
        """Join with spaces; attach clitics and amounts after a currency sign, restore English capitals."""
        typed: list[str] = []
        previous = ""
        for token in tokens:
            price = _CURRENCY.fullmatch(previous) and (token == NUMBER or token[:1].isdigit())
            typed.append(_written(token) if price or token in CLITICS or not typed else " " + _written(token))
            previous = token
        return "".join(typed)

    def complete(self, text: str) -> Completion:
        """Complete the typed word, case-insensitively, also after an opening quote or as a clitic."""
        before, typed = split_typed(text)
        if len(typed) > _LONGEST:
            return Completion(before, [], NO_IDS, typed, typed, self)
        folded, origin = _fold(typed)
        for cut, words in self._cuts(folded):
            prefix = folded[cut:]
            candidates = words.starting(prefix.lower()) if prefix else None
            if candidates is None or len(candidates):
                started = list(self._chunk(typed[: origin[cut]], len(before)))
                return Completion(before, started, candidates, typed, prefix, self)
        return Completion(before, [], NO_IDS, typed, folded, self)

    def _cuts(self, folded: str) -> Iterator[tuple[int, WordList]]:
        """Yield possible starts of the typed word, the longest reading first, each with the list to search."""
        window = max(0, len(folded) - self._words.longest)  # no known word starts before it
        if not window:
            yield 0, self._words
        for pattern in (_NEGATION_STARTED, _CLITIC_STARTED):
            if match := pattern.search(folded, window):
                yield match.start(1), self._clitics
        for match in _OPENING.finditer(folded, window):
            yield match.end(), self._words

    def _chunk(self, chunk: str, at: int) -> Iterator[Word]:
        """Yield the tokens of a chunk outside the vocabulary; `at` is its start in the text."""
        for text, start, end in self._chunk_tokens(chunk):
            yield Word(text, at + start, at + end)

    def _chunk_tokens(self, chunk: str) -> Iterable[Word]:
        """Return the chunk's tokens, with offsets into the chunk, from the cache if it is short."""
        return self._cached(chunk) if len(chunk) <= _SHORT else self._analysed(chunk)

    def _analysed(self, chunk: str) -> Iterator[Word]:
        folded, origin = _fold(chunk)
        for match in _PART.finditer(folded):
            part, at = match[0], match.start()
            if part != folded and part in self._known:
                found: Iterable[Word] = [Word(part, 0, len(part))]
            elif _FOREIGN.search(part) or _ADDRESS.search(part):
                found = _whole(chunk, part, origin[at : match.end() + 1])
            else:
                found = self._pieces(part)
            for text, start, end in found:
                yield Word(text, origin[at + start], origin[at + end])

    def _pieces(self, folded: str) -> Iterator[Word]:
        """Yield the signs and words of a folded chunk, with offsets into it."""
        money = -1  # end of the last currency sign: digits that start there are an amount
        for match in _PIECE.finditer(folded):
            piece, start, end = match[0], match.start(), match.end()
            if match.lastgroup == "word":
                yield from self._word(piece, start, money == start)
            else:
                sign = _SIGNS.get(piece, piece.lower())
                money = end if _CURRENCY.fullmatch(sign) else -1
                yield Word(sign, start, end)

    def _word(self, word: str, at: int, money: bool) -> Iterator[Word]:
        """Yield a word's tokens: its known spelling, else that without period and quotes, else its parts."""
        if spelling := self._spelling(word):
            yield Word(spelling, at, at + len(word))
        elif word.endswith("."):
            yield from self._word(word[:-1], at, money)
        elif word.endswith("'"):
            yield from self._word(word[:-1], at, money)
            if word[-2] in "sS" and word[0] != "'":  # workers', but not 'workers'
                yield Word("'", at + len(word) - 1, at + len(word))
        elif word[0] == "'":
            yield from self._word(word[1:], at + 1, money)
        else:
            yield from self._parts(word, at, money)

    def _parts(self, word: str, at: int, money: bool) -> Iterator[Word]:
        """Split into host and clitics, sentences, number and unit, or at slashes; else yield the unknown word."""
        end = at + len(word)
        if cuts := _clitic_cuts(word):
            yield from self._word(word[: cuts[0]], at, money)
            for first, last in pairwise([*cuts, len(word)]):
                yield Word(word[first:last].lower(), at + first, at + last)
        elif ends := [
            period.end()
            for period in _GLUED.finditer(word)
            if not period["before"] or None not in map(self._spelling, period.group("before", "after"))
        ]:
            for first, last in pairwise([0, *ends, len(word)]):
                yield from self._word(word[first:last], at + first, money and not first)
        elif (amount := _AMOUNT.fullmatch(word)) and (money or amount["unit"].lower() not in _MONEY_UNITS):
            yield Word(NUMBER, at, at + amount.end("figures"))
            yield Word(_UNITS[amount["unit"].lower()], at + amount.end("figures"), end)
        elif "/" in word:
            for part in _SLASHED.finditer(word):
                yield from self._word(part[0], at + part.start(), money=False)
        else:
            yield Word(word.lower(), at, end)

    def _spelling(self, word: str) -> str | None:
        """Return the corpus's spelling of the word, None if it has none."""
        known = (spelling for spelling in _spellings(word) if spelling in self._known)
        return next(known, NUMBER if _NUMBER.fullmatch(word.lower()) else None)


def _fold(chunk: str) -> tuple[str, Sequence[int]]:
    """Fold the chunk; return the plain characters and the offset in the chunk of each of them and of the end."""
    if chunk.isascii() and "&" not in chunk and "`" not in chunk:
        return chunk, range(len(chunk) + 1)
    folded = [(_fold_character(character), offset) for character, offset in unescaped_characters(chunk)]
    return "".join(plain for plain, _ in folded), [*(offset for plain, offset in folded for _ in plain), len(chunk)]


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    """Return the plain form: an ASCII quote or hyphen, a letter without its accent, "" for a combining accent."""
    if character in _FOLDS:
        return _FOLDS[character]
    kept = [c for c in unicodedata.normalize("NFKD", character) if unicodedata.category(c) not in _DROPPED]
    plain = "".join(kept)
    splits = len(kept) > 1 and not plain.isalnum()  # one character must not become two tokens
    return character if splits or plain.isspace() else plain


def _whole(chunk: str, folded: str, origin: Sequence[int]) -> Iterator[Word]:
    """Yield one token from the first letter or digit to the last, in the chunk's own characters."""
    letters = [offset for offset, character in enumerate(folded) if character.isalnum()]
    if letters:
        start, end = letters[0], letters[-1] + 1
        yield Word(chunk[origin[start] : origin[end]].lower(), start, end)


def _clitic_cuts(word: str) -> list[int]:
    """Return the starts of the clitics at the word's end: 5 and 8 in wouldn't've."""
    cuts = [len(word)]
    for match in reversed(list(_CLITIC.finditer(word, 1))):
        if match.end() != cuts[-1]:
            break
        cuts.append(match.start())
    return cuts[:0:-1]


def _spellings(word: str) -> Iterator[str]:
    """Yield possible spellings of a word in the corpus, the likeliest first."""
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
    """Return a token as a person types it."""
    if _CAPITALS.fullmatch(token):
        return token.upper()
    if _CAPITALISED.fullmatch(token):
        return token.capitalize()
    return "\u00a3" if token == POUND else token.replace("\\", "")
