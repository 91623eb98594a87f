"""A text's score is the same alone, beside others and gzipped."""

import gzip
from pathlib import Path

import pytest

from app import bundle as bundles
from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.predictor import Resources
from training.evaluate import score_files

TEXT = "the company said profits rose\nhe says it does\n" * 5


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_files_are_scored_side_by_side_as_alone(precision: str, tiny_store: Path, tmp_path: Path) -> None:
    predictor = LanguageModelPredictor.open(bundles.read(tiny_store / "tiny" / "1"), precision, Resources())  # type: ignore[arg-type]
    plain, short, zipped = tmp_path / "plain.txt", tmp_path / "short.txt", tmp_path / "zipped.txt.gz"
    plain.write_text(TEXT)
    short.write_text("shares fell")
    zipped.write_bytes(gzip.compress(TEXT.encode()))
    together = score_files(predictor, [plain, short, zipped])
    alone = [score_files(predictor, [path])[0] for path in (plain, short, zipped)]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6)
    assert together[0].log_likelihood == pytest.approx(together[2].log_likelihood, rel=1e-6)
    assert (together[0].tokens, together[0].sentences) == (55, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "expected some words, found none"),
        (b"caf\xe9", "expected UTF-8, found byte 0xe9"),
    ],
)
def test_a_file_that_cannot_be_scored_is_named(
    content: bytes | None, message: str, tiny_store: Path, tmp_path: Path
) -> None:
    predictor = LanguageModelPredictor.open(bundles.read(tiny_store / "tiny" / "1"), "int8", Resources())
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError) as refusal:
        score_files(predictor, [path])
    assert str(refusal.value) == f"{path}: {message}"
