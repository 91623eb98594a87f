"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of any Unicode text, without dependencies.

    tokenizer = SubwordTokenizer.read(Path("tokenizer.json"))
    tokenizer.decode(tokenizer.encode("Thanks for your help.")) == "Thanks for your help."

The file is the `tokenizer.json` of Hugging Face's `tokenizers`, whose pieces are the same for `spaced(text)`. Training
and serving use this encoder.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from app.errors import BundleError

DOCUMENT: Final = "<doc>"  # starts a document; no text is encoded as it
PLACEHOLDERS: Final = ("<email>", "<url>", "<phone>", "<number>", "<user>")  # stand in corpora for what was removed
SPECIALS: Final = (DOCUMENT, *(space + name for name in PLACEHOLDERS for space in ("", " ")))
"""Pieces that are not merged from bytes, in the order of their ids."""

# Explicit ranges, and no properties such as \p{L}: the same characters in every regex engine and Unicode version.
_LETTERS = (
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u167f\u1681-\u1fff"  # with combining marks
    "\u2c00-\u2dff\u2e80-\u2fff\u3005-\u3007\u3041-\ud7ff\uf900-\ufdff\ufe20-\ufe2f\ufe70-\ufefc"
    "\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc\U00010000-\U0001efff\U00020000-\U0003ffff"
)
_SPACES = " \\t\\r\\x0b\\x0c\\x1c-\\x1f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # without \n
_PLACEHOLDER = "<(?:email|url|phone|number|user)>"
PATTERN: Final = (
    f" ?[{_LETTERS}]{{1,64}}(?:['\u2019][{_LETTERS}]{{1,16}}){{0,4}}"  # don't and I'm are one
    "| ?[0-9]{1,3}"
    f"| ?[^{_LETTERS}{_SPACES}0-9\\n]{{1,64}}"
    "|\\n"
    f"|[{_SPACES}]{{1,64}}(?= )"  # the last space of several belongs to what follows
    f"|[{_SPACES}]{{1,64}}"
)
"""Pre-tokens: no piece crosses their bounds. Bounded in length, so that encoding takes time linear in the text."""
_PRE_TOKEN = re.compile(PATTERN)
_MARKED = re.compile(f"( ?{_PLACEHOLDER})")
_LINE_START = re.compile(r"(?m)^(?=[^\n])")
_CACHED = 1 << 17  # pre-tokens remembered with their pieces


class Piece(NamedTuple):
    """A piece and the characters it covers; one that ends inside a character leaves it to the piece that completes it.

    The spans of a text's pieces are contiguous and cover it.
    """

    id: int
    start: int
    end: int


class SubwordTokenizer:
    """Pieces of text from merge ranks. A line's first word gets a space before it, as if inside a sentence.

    The space is added to every line that is not empty, and taken off again by `decode`.
    """

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
        self.newline = index[b"\n"]
        self.document = 0

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
    def parse(cls, text: str) -> Self:
        """Parse the text of a `tokenizer.json`; KeyError, TypeError or ValueError if it is something else."""
        content: dict[str, Any] = json.loads(text)
        found = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        if found != PATTERN:
            raise ValueError("another pre-tokenizer pattern")
        vocabulary: dict[str, int] = content["model"]["vocab"]
        pieces = [b""] * len(vocabulary)
        for name, number in vocabulary.items():
            pieces[number] = name.encode() if name in SPECIALS else bytes(_BYTE_OF[character] for character in name)
        merges = (
            (vocabulary[left], vocabulary[right], vocabulary[left + right])
            for left, right in content["model"]["merges"]
        )
        return cls(pieces, merges)

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the pieces and merge ranks: equal digests encode every text alike."""
        merges = [[*pair, merged] for pair, (_, merged) in self._ranks.items()]
        content = json.dumps([PATTERN, [piece.hex() for piece in self.pieces], merges])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def placeholders(self) -> frozenset[int]:
        """The ids of the placeholders, with and without a space before them."""
        return frozenset(range(1, len(SPECIALS)))

    def encode(self, text: str, *, inside_line: bool = False) -> list[int]:
        """Return the ids of the text's pieces; `inside_line`: the text goes on in a line, and gets no space first."""
        ids: list[int] = []
        for number, line in enumerate(text.split("\n")):
            if number:
                ids.append(self.newline)
            if line:
                self._extend(ids, line if inside_line and not number else f" {line}")
        return ids

    def spans(self, text: str, *, inside_line: bool = False) -> Iterator[Piece]:
        """Yield the pieces of `encode` with the characters they cover, a line at a time."""
        start = 0  # of the line
        for number, line in enumerate(text.split("\n")):
            if number:
                yield Piece(self.newline, start, start + 1)
                start += 1
            if line:
                added = 0 if inside_line and not number else 1
                yield from self._line_spans(f" {line}"[1 - added :], start - added, start)
            start += len(line)

    def _line_spans(self, line: str, start: int, first: int) -> Iterator[Piece]:
        """Yield the spans of one line whose first character is at `start`; no piece starts before `first`."""
        ids: list[int] = []
        self._extend(ids, line)
        sizes = None if line.isascii() else [len(character.encode("utf-8", "surrogatepass")) for character in line]
        complete = filled = 0  # characters whose last byte is read; bytes read of the next
        before = first
        for piece in ids:
            filled += len(self.pieces[piece])
            if sizes is None:
                complete, filled = complete + filled, 0
            else:
                while complete < len(sizes) and filled >= sizes[complete]:
                    filled -= sizes[complete]
                    complete += 1
            end = max(start + complete, first)
            yield Piece(piece, before, end)
            before = end

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

    def _extend(self, ids: list[int], line: str) -> None:
        """Append the pieces of a line, its first space included."""
        if "<" not in line:
            self._extend_unmarked(ids, line)
            return
        for number, part in enumerate(_MARKED.split(line)):
            if number % 2:
                ids.extend(self._specials[part])
            else:
                self._extend_unmarked(ids, part)

    def _extend_unmarked(self, ids: list[int], line: str) -> None:
        cache = self._cache
        for token in _PRE_TOKEN.findall(line):
            pieces = cache.get(token)
            if pieces is None:
                pieces = self._merged(token)
                if len(cache) >= _CACHED:
                    cache.clear()
                cache[token] = pieces
            ids.extend(pieces)

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


def _bytes_as_characters() -> dict[str, int]:
    """Return the printable character of each byte in a tokenizer.json (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + at): value for at, value in enumerate(others)}


_BYTE_OF = _bytes_as_characters()
