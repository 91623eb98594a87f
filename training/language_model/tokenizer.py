"""Training of the byte-level BPE tokenizer that `app.text.subword` encodes with."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Chain
from tokenizers.trainers import BpeTrainer

from app.errors import CorpusError
from app.text.subword import PATTERN, PLACEHOLDERS, SPECIALS, SubwordTokenizer, spaced
from training.corpora.documents import Files, parts, text_files
from training.corpora.files import replaced

_PLACEHOLDER = re.compile(" ?(?:" + "|".join(map(re.escape, PLACEHOLDERS)) + ")")
_FEWEST = len(SPECIALS) + 256


def train_tokenizer(folders: Sequence[Path], output: Path, *, pieces: int = 16_384, every: int = 2) -> SubwordTokenizer:
    """Train on every `every`-th document of the folders' training texts, and write the file.

    Raise CorpusError for fewer pieces than the bytes and the specials, or where there is no text.
    """
    if pieces < _FEWEST:
        raise CorpusError(f"pieces: expected {_FEWEST} or more, found {pieces}")
    tokenizer = library_tokenizer()
    trainer = BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(SPECIALS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(text_files(folders)["train"], every), trainer)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(output) as partial:
        tokenizer.save(str(partial), pretty=False)
    return SubwordTokenizer.read(output)


def library_tokenizer() -> Tokenizer:
    """The untrained tokenizer of Hugging Face's library; it takes `spaced` texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Chain([Split(Regex(PATTERN), "isolated"), ByteLevel(False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _texts(files: Files, every: int) -> Iterator[str]:
    """The spaced documents without their placeholders."""
    for name in sorted(files):
        number = -1
        for text, continued in parts(name, files[name], lowered=0.1):
            number += not continued
            if number % every == 0:
                yield spaced(_PLACEHOLDER.sub("", text))
