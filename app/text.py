"""Raw text <-> normalised tokens with offsets <-> ids; the vocabulary."""

from collections.abc import Iterable, Sequence
from functools import cached_property

END = "<eos>"
UNKNOWN = "<unk>"


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
