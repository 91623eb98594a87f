"""A small subword tokenizer made by hand."""

from functools import cache

from app.text.subword import SPECIALS, SubwordTokenizer

WORDS = (
    "the then there The They I I'm I'll don't done isn't ill illness in it is was well known help helps hello York Y"
    ' New you your Katarzyna 2 20 and a an apple end . , ! ( " -'
).split()


@cache
def subword_tokenizer(words: tuple[str, ...] = tuple(WORDS)) -> SubwordTokenizer:
    """A tokenizer in which each of `words` after a space is one piece, and so is its tail."""
    pieces = [name.encode() for name in SPECIALS] + [bytes([value]) for value in range(256)]
    index = {piece: number for number, piece in enumerate(pieces) if number >= len(SPECIALS)}
    merges: dict[tuple[int, int], int] = {}
    for word in words:
        for text in (f" {word}", word[1:]):
            content = text.encode()
            for size in range(2, len(content) + 1):
                left, right = index[content[: size - 1]], index[content[size - 1 : size]]
                merged = index.setdefault(content[:size], len(index) + len(SPECIALS))
                merges.setdefault((left, right), merged)
                if merged == len(pieces):
                    pieces.append(content[:size])
    return SubwordTokenizer(pieces, [(*pair, merged) for pair, merged in merges.items()])
