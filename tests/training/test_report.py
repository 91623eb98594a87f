"""Pictures are drawn of any run."""

from pathlib import Path

import pytest

from training.report import learning_curve


@pytest.mark.parametrize("epochs", [1, 30])
def test_a_learning_curve_is_a_picture(epochs: int, tmp_path: Path) -> None:
    metrics = [
        {"epoch": e, "train_perplexity": 900 / e, "valid_perplexity": 800 / e, "learning_rate": 1 / e}
        for e in range(1, epochs + 1)
    ]
    learning_curve(metrics, tmp_path / "curves.png", "letters $1")
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(picture[16:20]) == 880  # pixels across
