"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of any Unicode text, without dependencies.

    tokenizer = SubwordTokenizer.read(Path("tokenizer.json"))
    tokenizer.decode(tokenizer.ids("Thanks for your help.")) == "Thanks for your help."

The file is the `tokenizer.json` of Hugging Face's `tokenizers`, whose pieces are the same for `spaced(text)`. Training
and serving use this encoder.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from app.errors import BundleError
from app.text.tokenizer import Flags, Ids, Token
from app.text.word_pieces import LETTERS, WORD, SubwordPrefix, WordPieces, read_prefix
from app.text.words import lines

DOCUMENT: Final = "<doc>"  # starts a document; no text is encoded as it
PLACEHOLDERS: Final = ("<email>", "<url>", "<phone>", "<number>", "<user>")  # stand in corpora for what was removed
SPECIALS: Final = (DOCUMENT, *(space + name for name in PLACEHOLDERS for space in ("", " ")))
"""Pieces that are not merged from bytes, in the order of their ids."""

_SPACES = " \\t\\r\\x0b\\x0c\\x1c-\\x1f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # without \n
_PLACEHOLDER = "<(?:email|url|phone|number|user)>"
PATTERN: Final = (
    f" ?[{LETTERS}]{{1,64}}(?:['\u2019][{LETTERS}]{{1,16}}){{0,4}}"  # don't and I'm are one
    "| ?[0-9]{1,3}"
    f"| ?[^{LETTERS}{_SPACES}0-9\\n]{{1,64}}"
    "|\\n"
    f"|[{_SPACES}]{{1,64}}(?= )"  # the last space of several belongs to what follows
    f"|[{_SPACES}]{{1,64}}"
)
"""Pre-tokens: no piece crosses their bounds. Bounded in length, so that encoding takes time linear in the text."""
_PRE_TOKEN = re.compile(PATTERN)
_MARKED = re.compile(f"( ?{_PLACEHOLDER})")
_LINE_START = re.compile(r"(?m)^(?=[^\n])")
_BLANK_LINES = 512  # lines without pieces, about 0.4 ms, after which `sentences` yields None
_CACHED = 1 << 16  # pre-tokens cached with their pieces
_STRETCH = 1024  # characters of a long text whose pieces are cached together: it comes again at each keystroke
_STRETCHES = 256
_CUT = re.compile(rf"\n|(?<=\S)(?= [{LETTERS}0-9])")  # no piece goes on behind it


class SubwordTokenizer:
    """Pieces of text from merge ranks. A line's first word gets a space before it, as if inside a sentence.

    The space is added to every line that is not empty, and taken off again by `decode`.
    """

    FILE: ClassVar[str] = "tokenizer.json"

    def __init__(self, pieces: Sequence[bytes], merges: Iterable[tuple[int, int, int]]) -> None:
        """`pieces`: the bytes of each id, specials first; `merges`: (left, right, merged) ids, the best rank first.

        Raise ValueError unless the specials and the 256 bytes are among the pieces.
        """
        self.pieces = tuple(pieces)
        index = {piece: number for number, piece in enumerate(self.pieces[len(SPECIALS) :], len(SPECIALS))}
        if [piece.decode("utf-8", "replace") for piece in self.pieces[: len(SPECIALS)]] != list(SPECIALS):
            raise ValueError(f"pieces: expected {', '.join(SPECIALS)} first, found {self.pieces[: len(SPECIALS)]}")
        absent = [value for value in range(256) if bytes([value]) not in index]
        if absent:
            raise ValueError(f"pieces: expected all 256 bytes, found none for {absent[0]:#04x}")
        self._bytes = [index[bytes([value])] for value in range(256)]
        self._ranks = {(left, right): (rank, merged) for rank, (left, right, merged) in enumerate(merges)}
        self._specials = {text: (number,) for number, text in enumerate(SPECIALS)}
        self._cache: dict[str, tuple[int, ...]] = {}
        self.words = lru_cache(_CACHED)(self._words)  # the search finds the same words at each keystroke
        self._known_ids = lru_cache(_STRETCHES)(self._ids)
        self.newline = index[b"\n"]
        self.document = self.end = 0
        self.unknown: int | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `tokenizer.json`; BundleError if it is missing or none of this pre-tokenizer."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BundleError(f"{path}: can't be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path}: expected a byte-level BPE tokenizer.json of seqserve's: {error}") from error

    @classmethod
    def parse(cls, content: str) -> Self:
        """Parse the text of a `tokenizer.json`; KeyError, TypeError or ValueError if it is something else."""
        parsed: dict[str, Any] = json.loads(content)
        found = parsed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        if found != PATTERN:
            raise ValueError("another pre-tokenizer pattern")
        vocabulary: dict[str, int] = parsed["model"]["vocab"]
        pieces = [b""] * len(vocabulary)
        for name, number in vocabulary.items():
            pieces[number] = name.encode() if name in SPECIALS else bytes(_BYTE_OF[character] for character in name)
        merges = (
            (vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in parsed["model"]["merges"]
        )
        return cls(pieces, merges)

    def __len__(self) -> int:
        return len(self.pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the parts of a pickle, without caches."""
        return type(self), (self.pieces, self._merges)

    @property
    def _merges(self) -> list[tuple[int, int, int]]:
        return [(*pair, merged) for pair, (_, merged) in self._ranks.items()]

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the pieces and merge ranks: equal digests encode every text alike."""
        content = json.dumps([PATTERN, [piece.hex() for piece in self.pieces], self._merges])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def strings(self) -> Sequence[str]:
        """The text of each piece; bytes that are no UTF-8 are U+FFFD."""
        return [piece.decode("utf-8", "replace") for piece in self.pieces]

    @property
    def sentence_ends(self) -> Ids:
        """The ids of full stops, exclamation and question marks, line breaks and `<doc>`."""
        return self.word_pieces.sentence_ends

    @cached_property
    def word_pieces(self) -> WordPieces:
        """The pieces that words consist of."""
        return WordPieces(self.pieces, len(SPECIALS))

    def ids(self, text: str, *, inside_line: bool = False) -> list[int]:
        """Return the ids of the text's pieces; `inside_line`: the text goes on in a line, and gets no space first."""
        ids, at = list[int](), 0
        while cut := _CUT.search(text, at + _STRETCH, at + 2 * _STRETCH):
            ids.extend(self._known_ids(text[at : cut.end()], inside_line))
            at, inside_line = cut.end(), cut[0] != "\n"
        ids.extend(self._ids(text[at:], inside_line))
        return ids

    def _ids(self, text: str, inside_line: bool) -> "array[int]":
        ids = array("i")
        for number, line in enumerate(text.split("\n")):
            if number:
                ids.append(self.newline)
            if line:
                for pieces, _ in self._pre_tokens(line if inside_line and not number else f" {line}"):
                    ids.extend(pieces)
        return ids

    def encode(self, text: str, offset: int = 0, *, ended: bool = False, inside_line: bool = False) -> Iterator[Token]:
        """Yield the pieces of a text, with `ended` the end of the document; see `Tokenizer`.

        The spans of the pieces are contiguous and cover the text. A piece that ends inside a character leaves it to the
        piece that completes it.
        """
        line_start = offset
        for number, line in enumerate(text.split("\n")):
            if number:
                yield Token(self.newline, "\n", line_start, line_start + 1)
                line_start += 1
            space = " " if line and (number or not inside_line) else ""  # added, and takes no character
            at, before = line_start - len(space), line_start
            for pieces, pre_token in self._pre_tokens(space + line):
                whole = [len(pre_token)] if len(pieces) == 1 else self._complete(pieces, pre_token)
                for piece, complete in zip(pieces, whole, strict=True):
                    end = max(at + complete, line_start)
                    yield Token(piece, self.strings[piece], before, end)
                    before = end
                at += len(pre_token)
            line_start += len(line)
        if ended and text:
            yield Token(self.end, DOCUMENT, line_start, line_start)

    def sentences(self, text: str) -> Iterator[Iterator[Token | None]]:
        """Yield the pieces of each line that is not blank and the end of the document, as if it were one."""
        for number, (line, offset) in enumerate(lines(text), 1):
            if line.strip():
                yield self.encode(line, offset, ended=True)
            elif number % _BLANK_LINES == 0:
                yield iter([None])

    def _words(self, tokens: tuple[int, ...]) -> tuple[str, ...]:
        """Return a word or a run of words; the first is empty for bytes that are no word or have other pieces."""
        first, *others = self.decode(tokens, inside_line=True).removeprefix(" ").split(" ")
        spaced = self.pieces[tokens[0]][:1] == b" "
        whole = WORD.fullmatch(first) and (
            others or self.ids(f" {first}" if spaced else first, inside_line=True) == list(tokens)
        )
        return (first if whole else "", *others)

    def begins(self, ids: Ids) -> Flags:
        """Return for each token of a text (N,) whether it goes on in no word; see `Tokenizer`."""
        return self.word_pieces.begins(ids)

    def prefix(self, text: str, *, complete: bool) -> SubwordPrefix:
        """Return the context of the next word; see `Tokenizer`."""
        return read_prefix(self, text, complete=complete)

    def decode(self, ids: Iterable[int], *, inside_line: bool = False) -> str:
        """Return the text of the pieces, `<doc>` left out; bytes that are no UTF-8 become U+FFFD."""
        lines: list[list[bytes]] = [[]]
        for piece in ids:
            if piece == self.newline:
                lines.append([])
            elif piece != self.document:
                lines[-1].append(self.pieces[piece])
        whole = [b"".join(line) for line in lines]
        joined = b"\n".join(
            line if inside_line and not number else line.removeprefix(b" ") for number, line in enumerate(whole)
        )
        try:
            return joined.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return joined.decode("utf-8", "replace")

    def _pre_tokens(self, line: str) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield the pieces of each pre-token of a line, its first space included, and the pre-token."""
        cache = self._cache
        for number, part in enumerate(_MARKED.split(line) if "<" in line else (line,)):
            if number % 2:
                yield self._specials[part], part
                continue
            for match in _PRE_TOKEN.finditer(part):
                token = match[0]
                pieces = cache.get(token)
                if pieces is None:
                    pieces = self._merged(token)
                    if len(cache) >= _CACHED:
                        cache.clear()
                    cache[token] = pieces
                yield pieces, token

    def _complete(self, pieces: Sequence[int], token: str) -> Iterator[int]:
        """Yield after each piece the number of characters of the pre-token that are complete."""
        sizes = [len(character.encode("utf-8", "surrogatepass")) for character in token]
        complete = filled = 0  # characters whose last byte is read; bytes read of the next
        for piece in pieces:
            filled += len(self.pieces[piece])
            while complete < len(sizes) and filled >= sizes[complete]:
                filled -= sizes[complete]
                complete += 1
            yield complete

    def _merged(self, token: str) -> tuple[int, ...]:
        """The pieces of one pre-token: its bytes, the pair of the best rank merged first, the leftmost of equals."""
        ids = [self._bytes[value] for value in token.encode("utf-8", "surrogatepass")]
        ranks, none = self._ranks, (len(self._ranks), -1)
        while len(ids) > 1:
            (_, merged), at = min((ranks.get(pair, none), at) for at, pair in enumerate(pairwise(ids)))
            if merged < 0:
                break
            ids[at : at + 2] = [merged]
        return tuple(ids)


def spaced(text: str) -> str:
    """Return the text with a space before each line that is not empty: what `encode` cuts into pieces."""
    return _LINE_START.sub(" ", text)


# The byte of each printable character in a tokenizer.json (Radford et al. 2019, GPT-2).
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [value for value in range(256) if value not in _PRINTABLE]
_BYTE_OF = {chr(value): value for value in _PRINTABLE} | {chr(256 + at): value for at, value in enumerate(_OTHERS)}
