"""Plots of a run."""

from pathlib import Path

import numpy as np
import pytest

from training.plots import confusion_matrix, contact_sheet, learning_curve, reliability_diagram


@pytest.mark.parametrize("epochs", [1, 30])
def test_a_learning_curve_is_a_png(epochs: int, tmp_path: Path) -> None:
    metrics = [
        {"epoch": e, "train_perplexity": 900 / e, "valid_perplexity": 800 / e, "learning_rate": 1 / e}
        for e in range(1, epochs + 1)
    ]
    learning_curve(metrics, tmp_path / "curves.png", "letters $1")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(content[16:20]) == 880  # pixels across


def png(path: Path) -> bytes:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    return content


def test_a_learning_curve_may_be_of_another_figure_on_other_parts(tmp_path: Path) -> None:
    metrics = [
        {"epoch": 1, "train_accuracy": 0.9, "valid_accuracy": 0.8, "valid_degraded_accuracy": 0.7, "learning_rate": 0}
    ]
    contents = []
    for parts in (("train", "valid"), ("train", "valid", "valid_degraded")):
        learning_curve(metrics, tmp_path / "curves.png", "digits", metric="accuracy", parts=parts, logarithmic=False)
        contents.append(png(tmp_path / "curves.png"))
    assert contents[0] != contents[1]


def test_an_epoch_without_a_part_has_no_point_of_it(tmp_path: Path) -> None:
    first = {"epoch": 1, "valid_accuracy": 0.8, "learning_rate": 0}
    second = {"epoch": 2, "valid_accuracy": 0.9, "valid_degraded_accuracy": 0.7, "learning_rate": 0}
    contents = []
    for earlier in (first, first | {"valid_degraded_accuracy": 0.6}):
        parts = ("valid", "valid_degraded")
        learning_curve(
            [earlier, second], tmp_path / "curves.png", "", metric="accuracy", parts=parts, logarithmic=False
        )
        contents.append(png(tmp_path / "curves.png"))
    assert contents[0] != contents[1]


def test_a_confusion_matrix_shows_each_confusion(tmp_path: Path) -> None:
    labels, names, path = [0, 1, 2, 2], ["a", "b", "none"], tmp_path / "confusion.png"
    contents = set()
    for answers in ([0, 1, 2, 2], [0, 1, 2, 0], [0, 1, 2, 1]):
        confusion_matrix(labels, answers, names, path)
        contents.add(png(path))
    assert len(contents) == 3


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (10, 1), (11, 2)])
def test_a_contact_sheet_has_ten_images_a_row(count: int, rows: int, tmp_path: Path) -> None:
    images = [np.full((28, 28), 20 * place, np.uint8) for place in range(count)]
    contact_sheet(images, ["4 read 9"] * count, tmp_path / "sheet.png")
    assert int.from_bytes(png(tmp_path / "sheet.png")[20:24]) == int(110 * 1.1 * rows)  # pixels down


def test_a_reliability_diagram_shows_how_often_each_confidence_is_right(tmp_path: Path) -> None:
    path, contents = tmp_path / "reliability.png", set()
    for confidence, right in (([0.9, 0.9], [True, True]), ([0.9, 0.9], [True, False]), ([0.0, 1.0], [True, True])):
        reliability_diagram(confidence, right, path)
        contents.add(png(path))
    assert len(contents) == 3
