"""Words over the pieces of a subword tokenizer: the context of the next word and the pieces that it may consist of.

A word is one piece that begins with a space, or with a letter or digit after a sign, and the pieces after it that begin
with a letter, a digit, or an apostrophe and a letter. No piece crosses a word's bounds, so the probability of a word is
the product of its pieces' and of the probability that no further one of its pieces follows.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from app.text.characters import APOSTROPHES, SEPARATORS, unescaped
from app.text.tokenizer import Flags, Following, Ids
from app.text.word_list import WordList

if TYPE_CHECKING:
    from app.text.subword import SubwordTokenizer

# Explicit ranges, and no properties such as \p{L}: the same characters in every regex engine and Unicode version.
LETTERS: Final = (
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u167f\u1681-\u1fff"  # with combining marks
    "\u2c00-\u2dff\u2e80-\u2fff\u3005-\u3007\u3041-\ud7ff\uf900-\ufdff\ufe20-\ufe2f\ufe70-\ufefc"
    "\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc\U00010000-\U0001efff\U00020000-\U0003ffff"
)
WORD: Final = re.compile(f"[{LETTERS}0-9](?:'?[{LETTERS}0-9])*")
_TYPED = re.compile(f"[{LETTERS}0-9](?:[{APOSTROPHES}]?[{LETTERS}0-9])*[{APOSTROPHES}]?$")
_INNER_APOSTROPHE = re.compile(f"[{APOSTROPHES}](?<=[{LETTERS}][{APOSTROPHES}])(?=[{LETTERS}]|$)")
_PARTED = re.compile(f"(?<=[^\\s{SEPARATORS}])[{SEPARATORS}]+(?=[^\\s{SEPARATORS}]|$)")
_PLAIN = str.maketrans(
    dict.fromkeys(f"\u00ad\u2060\ufeff{SEPARATORS}")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    | {"\u00a0": " ", "\u202f": " ", "\u2018": "'", "\u2019": "'", "\u2026": "...", "\r": "\n"}
)
_SEPARATORS = frozenset(SEPARATORS)
_ODD = frozenset("&`\r")  # in ASCII text, not as the corpora have it
_GLUED = re.compile(f"[.,;!?](?=[{LETTERS}])")
_ADDRESS = re.compile(r"://|@|\bwww\.", re.I)
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))).replace("\n", "")
_STRETCH = re.compile(r".{1,1024}(?:\s|$)|.{1,1024}", re.DOTALL)
_SENTENCE_START = re.compile(
    r"(?:^|\n|(?P<before>\S*)[.!?\u2026][\"'\u201d\u2019)\]]*\s)\s*[\"'\u201c\u2018(\[*\u2022-]*\s*$"
)
_ABBREVIATION = re.compile(r"[^a-z]*(?:(?:[a-z]\.)*[a-z]|mrs?|ms|dr|prof|st|vs|etc|no|jr|sr|inc|ltd|co|approx)", re.I)
_LONGEST = 64  # characters of a word being typed; a longer one has no completion


class WordPieces:
    """The pieces that words consist of, by their place in a word and by the characters they begin with."""

    def __init__(self, pieces: Sequence[bytes], specials: int) -> None:
        """`pieces`: the bytes of each id; the first `specials` are none of words."""
        whole = [_decoded(piece) for piece in pieces]
        places = range(specials, len(pieces))
        spaced = [at for at in places if whole[at][:1] == " " and WORD.match(whole[at], 1)]
        glued = [at for at in places if WORD.match(whole[at])]
        after_apostrophe = [at for at in places if whole[at][:1] == "'" and WORD.match(whole[at], 1)]
        inside_character = [at for at in places if not whole[at] and pieces[at][0] >= 0x80]
        first_bytes = [at for at in places if pieces[at] == b" " or (pieces[at][:1] == b" " and not whole[at])]
        ends = [0, *(at for at in places if whole[at] in (".", "!", "?", "...", "\n"))]
        self.sentence_ends: Ids = np.array(ends, np.int64)
        self._keys = {kept: [_key(piece, kept) for piece in pieces] for kept in (False, True)}
        self._begins = _Table([*spaced, *glued, *ends, *first_bytes, *inside_character], self._keys)
        self._spaced, every = len(spaced), len(spaced) + len(glued)
        self._stops = slice(every, every + len(ends))
        self._with_space = np.array([pieces[at][:1] == b" " for at in self._begins.ids])
        self._inner = _Table([*glued, *after_apostrophe, *inside_character], self._keys)
        self.inner = Following(self._inner.ids, ends=True)
        self._goes_on = np.isin(np.arange(len(pieces)), self._inner.ids)
        self._ends_inside = np.array(
            [piece[-1:].isalnum() or piece[-1:] >= b"\x80" or piece == b" " for piece in pieces]
        )
        self._ends_inside[:specials] = False

    def beginning(self, *, glued: bool) -> Following:
        """Return the pieces that begin a word after a space, with `glued` also without one."""
        return Following(
            self._begins.ids, places=slice(self._stops.start if glued else self._spaced), stops=self._stops
        )

    def typed_beginning(self, key: str, kept: bool, *, spaced: bool) -> Following:
        """Return the pieces that begin a word and either begin with `key` or are its beginning."""
        places, covers = self._begins.covering(key, kept)
        fit = (self._with_space[places] == spaced) & ((places < self._stops.start) | (places >= self._stops.stop))
        return Following(self._begins.ids, places=places[fit], covers=covers[fit], stops=self._stops)

    def typed_inside(self, key: str, kept: bool) -> Following:
        """Return the pieces inside a word that either begin with `key` or are its beginning."""
        places, covers = self._inner.covering(key, kept)
        return Following(self._inner.ids, places=places, covers=covers)

    def begins(self, ids: Ids) -> Flags:
        """Return for each piece of a text (N,) whether it goes on in no word."""
        begins = ~self._goes_on[ids]
        begins[:1] = True
        begins[1:] |= ~self._ends_inside[ids[:-1]]
        return begins

    def key_length(self, tokens: Iterable[int], kept: bool) -> int:
        """Return the length of the key of a word's first `tokens`."""
        return sum(len(self._keys[kept][token]) for token in tokens)


class _Table:
    """Pieces by key: for a typed prefix, those that begin with it and those that are its beginning."""

    def __init__(self, ids: Sequence[int], keys: Mapping[bool, Sequence[str]]) -> None:
        """`keys`: of every piece, with and without apostrophes."""
        self.ids: Ids = np.array(ids, np.int64)
        self._words: dict[bool, WordList] = {}
        self._exact: dict[bool, dict[str, list[int]]] = {}
        for kept, all_keys in keys.items():
            self._words[kept] = WordList((all_keys[number], place) for place, number in enumerate(ids))
            self._exact[kept] = defaultdict(list)
            for place, number in enumerate(ids):
                self._exact[kept][all_keys[number]].append(place)

    def covering(self, key: str, kept: bool) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Return the places (N,) of the pieces that fit, and whether nothing of `key` is left after each."""
        longer = self._words[kept].starting(key)
        exact = self._exact[kept]
        shorter = [place for size in range(len(key)) for place in exact.get(key[:size], ())]
        covers = np.arange(len(longer) + len(shorter)) < len(longer)
        return np.concatenate([longer, np.array(shorter, np.int64)]), covers


@dataclass(frozen=True)
class SubwordPrefix:
    """The `Prefix` of a text whose words are pieces."""

    ids: list[int]
    tokenizer: "SubwordTokenizer"
    typed: bool
    before: str  # the last run of non-space characters up to the word being typed
    word: str  # the typed part of the word
    spaced: bool  # the word begins with a space
    glued: bool  # the word may begin without one
    capital: bool  # the word begins a sentence

    @property
    def unknown_words(self) -> list[str]:
        """None: every text has its pieces."""
        return []

    def following(self, tokens: tuple[int, ...]) -> Following:
        """Return the pieces that go on in the word; see `Prefix`."""
        if not tokens:
            return self._first
        if not self.word:
            return self.tokenizer.word_pieces.inner
        pieces, (key, kept) = self.tokenizer.word_pieces, self._typed_key
        rest = key[pieces.key_length(tokens, kept) :]
        return pieces.typed_inside(rest, kept) if rest else pieces.inner

    @cached_property
    def _first(self) -> Following:
        pieces, (key, kept) = self.tokenizer.word_pieces, self._typed_key
        return pieces.typed_beginning(key, kept, spaced=self.spaced) if key else pieces.beginning(glued=self.glued)

    @cached_property
    def _typed_key(self) -> tuple[str, bool]:
        """The key of the typed part, and whether it has apostrophes to compare."""
        kept = any(mark in self.word for mark in APOSTROPHES)
        return _key(_plain(self.word).encode("utf-8", "surrogatepass"), kept), kept

    def after(self) -> "SubwordPrefix":
        """Return the prefix of the word after this one."""
        return SubwordPrefix([], self.tokenizer, False, "", "", True, False, False)

    def listed(self) -> "SubwordPrefix":
        """Return itself: pieces are always listed."""
        return self

    def text(self, tokens: Sequence[int]) -> str | None:
        """Return the words as a person would type them; None for bytes that are no word or have other pieces."""
        first, *others = self.tokenizer.words(tuple(tokens))
        if not first:
            return None
        spaced = self.tokenizer.pieces[tokens[0]][:1] == b" "
        if self.typed:
            gap = " " if spaced and self.before and not self.word else ""
            first = self.before + gap + _as_typed(self.word, first)
        elif self.capital:
            first = first[0].upper() + first[1:]
        return " ".join([first, *others])


def read_prefix(tokenizer: "SubwordTokenizer", text: str, *, complete: bool) -> SubwordPrefix:
    """Return the context of the next word, or of the one being typed at the end of `text`."""
    before, run, word = text, "", ""
    if complete and text and not text[-1].isspace():
        run = text.rsplit(maxsplit=1)[-1]
        before = text[: len(text) - len(run)]
        match = _TYPED.search(run[-_LONGEST:])
        word = match[0] if match else ""
        run = run[: len(run) - len(word)]
    context = _plain(before + run)
    stripped = context.rstrip(_SPACES)
    open_end = stripped[-1:]
    ends_part = bool(word) and open_end in ".,;!?" and _ends_part(context + word[0], len(context) - 1)
    spaced = not open_end or open_end == "\n" or len(stripped) < len(context) or ends_part
    glued = not spaced and not open_end.isalnum()
    start = _SENTENCE_START.search(stripped[-200:] + " " * (len(stripped) < len(context)))
    return SubwordPrefix(
        tokenizer.ids(stripped),
        tokenizer,
        complete,
        run,
        word,
        spaced=spaced,
        glued=glued,
        capital=start is not None and not (start["before"] and _ABBREVIATION.fullmatch(start["before"])),
    )


def _plain(text: str) -> str:
    """Return the text as the corpora have it.

    Composed (NFC), without HTML entities and invisible characters, with one kind of apostrophe inside words, of quotes
    and of line breaks, and with the spaces that are missing between sentences or after a comma.
    """
    if not (text.isascii() and _ODD.isdisjoint(text)):
        text = _composed(unescaped(text))
        if not _SEPARATORS.isdisjoint(text):
            text = _PARTED.sub(" ", text)
        text = _INNER_APOSTROPHE.sub("'", text.replace("\r\n", "\n").translate(_PLAIN))
        if "``" in text:
            text = text.replace("``", '"').replace("''", '"')
    return _GLUED.sub(lambda match: match[0] + " " * _ends_part(text, match.start()), text)


def _composed(text: str) -> str:
    """Return the text in NFC, made in stretches: ordering many combining marks in a row takes quadratic time."""
    return "".join([unicodedata.normalize("NFC", stretch) for stretch in _STRETCH.findall(text)])


def _ends_part(text: str, at: int) -> bool:
    """Return whether the sign at this index, before a letter, ends a sentence or a part of it: grew.It, rose,but.

    A full stop does so between two small letters and a capital; no sign does in an address.
    """
    before = text[max(at - 2, 0) : at]
    if text[at] == ".":
        ends = len(before) == 2 and before.isalpha() and before.islower() and text[at + 1].isupper()
    else:
        ends = before[-1:].isalpha()
    return ends and not _ADDRESS.search(text[max(at - 64, 0) : at].rpartition(" ")[2])


def _as_typed(typed: str, word: str) -> str:
    """Return `word` with the capitals and the apostrophe of its typed part; small letters leave it as it is."""
    if typed.isascii() and typed.islower() and "`" not in typed:
        return word
    mark = next((character for character in typed if character in APOSTROPHES), "'")
    letters = [character for character in unicodedata.normalize("NFC", typed) if character not in APOSTROPHES]
    if len(letters) > 1 and all(map(str.isupper, letters)):
        return word.upper().replace("'", mark)
    upper = iter([letter.isupper() for letter in letters])
    cased = [c if c == "'" or not next(upper, False) else c.upper() for c in word]
    return "".join(cased).replace("'", mark)


def _decoded(piece: bytes) -> str:
    """Return the piece's text, "" for bytes that are no UTF-8."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return ""


def _key(piece: bytes, kept: bool) -> str:
    """Return the bytes by which typed characters are compared, as a string.

    Without a first space, with small ASCII letters, and unless `kept` without apostrophes.
    """
    key = piece.removeprefix(b" ").lower()
    return (key if kept else key.replace(b"'", b"")).decode("latin-1")
