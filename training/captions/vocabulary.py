"""Words of captions, and the vocabulary of a corpus."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

from app.text import END, UNKNOWN, Vocabulary

# Words as in the scores' Penn Treebank tokenizer, without punctuation. 24 of Flickr8k's 40,000 captions differ:
# abbreviations with a period (`u.`), brackets (`-lrb-`), `cannot`.
_WORD = re.compile(
    r"[^\W_]+(?:[-.&/,][^\W_]+)*?(?=n't\b)|n't\b|[^\W_]+(?:[-.&/][^\W_]+)*|'(?:s|re|ve|ll|d|m)\b|[#$%&*@+=]"
)


def words(caption: str) -> list[str]:
    """A caption's words in lower case, without punctuation, clitics split off (`does n't`, `man 's`)."""
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def count_vocabulary(captions: Iterable[str], min_count: int) -> Vocabulary:
    """`<eos>`, `<unk>` and the words with at least `min_count` occurrences in `captions`, most frequent first."""
    counts = Counter(chain.from_iterable(map(words, captions)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary([END, UNKNOWN, *(word for word in ranked if counts[word] >= min_count)])
