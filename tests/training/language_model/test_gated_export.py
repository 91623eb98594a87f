"""The graphs of the stack of gated linear recurrences compute the same as the torch module, cut and batched anyhow."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from app.models.gated_recurrence import BlockState, GatedRecurrentLanguageModel
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS
from training.language_model.gated_export import export_gated_language_model

PIECES = 50
SHAPES: dict[str, dict[str, int]] = {
    "even": {"embedding_size": 16, "width": 24, "layers": 2, "hidden_size": 32, "inner_size": 48, "kernel": 4},
    "odd": {"embedding_size": 11, "width": 13, "layers": 3, "hidden_size": 17, "inner_size": 19, "kernel": 3},
    "without convolution": {"embedding_size": 9, "width": 15, "layers": 2, "hidden_size": 7, "inner_size": 5},
    "one block": {"embedding_size": 9, "width": 15, "layers": 1, "hidden_size": 7, "inner_size": 5, "kernel": 2},
}
Floats = npt.NDArray[np.float32]


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> GatedRecurrentLanguageModel:
    """A module of each shape, no weight at its start, in the precision of a float16 file."""
    made = GatedRecurrentLanguageModel(vocabulary_size=PIECES, **SHAPES[request.param])
    for name, weight in made.named_parameters():
        if name.endswith(("kernel", "norm.weight", "bias")):
            torch.nn.init.normal_(weight)
    return made.half().float().eval()


@pytest.fixture
def folder(model: GatedRecurrentLanguageModel, tmp_path: Path) -> Path:
    """Its exported files."""
    for name, content in export_gated_language_model(model).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def run(folder: Path, graph: str, precision: Precision, **feed: npt.NDArray[Any]) -> list[Floats]:
    return list(session(folder / f"{graph}.{precision}.onnx", 1).run(None, feed))


def log_probabilities(folder: Path, precision: Precision, hidden: Floats) -> Floats:
    none = np.empty((len(hidden), 0), np.int64)
    return run(folder, "softmax", precision, hidden=hidden, targets=none, count=np.array([0]))[0]


def random_state(model: GatedRecurrentLanguageModel, batch_size: int) -> list[BlockState]:
    return [(torch.randn_like(h), torch.randn_like(tail)) for h, tail in model.initial_state(batch_size)]


def flat(state: list[BlockState], hidden: torch.Tensor) -> Floats:
    """The state as the graphs lay it out (B, S)."""
    parts = [part for h, tail in state for part in (h, tail.transpose(0, 1).flatten(1))]
    return torch.cat([*parts, hidden], 1).detach().numpy()


def test_the_fp32_graphs_compute_what_the_module_computes(model: GatedRecurrentLanguageModel, folder: Path) -> None:
    tokens, before = torch.randint(PIECES, (40, 3)), random_state(model, 3)
    with torch.no_grad():
        expected, after = model(tokens, before)
        scores = model.logits(expected).log_softmax(-1).flatten(0, 1).numpy()
    state = flat(before, torch.zeros_like(expected[-1]))
    hidden, state_after = run(folder, "recurrent", "fp32", tokens=tokens.numpy(), state=state)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    np.testing.assert_allclose(state_after, flat(after, expected[-1]), atol=1e-5)
    found = log_probabilities(folder, "fp32", hidden.reshape(-1, hidden.shape[-1]))
    np.testing.assert_allclose(found, scores, atol=1e-4)


def test_the_int8_graphs_come_close_to_the_fp32_graphs(folder: Path) -> None:
    tokens = np.random.default_rng(3).integers(PIECES, size=(40, 3))
    state = np.zeros((3, state_size(folder)), np.float32)
    found, _ = run(folder, "recurrent", "int8", tokens=tokens, state=state)
    expected, _ = run(folder, "recurrent", "fp32", tokens=tokens, state=state)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.05


def test_an_int8_row_is_the_same_bit_for_bit_in_any_batch_and_wherever_it_is_cut(folder: Path) -> None:
    generator = np.random.default_rng(3)
    state = generator.normal(size=(5, state_size(folder))).astype(np.float32)
    state[3] *= 1000  # a neighbour that would spoil a scale shared by the batch
    tokens = generator.integers(PIECES, size=(9, 5))
    together, after = run(folder, "recurrent", "int8", tokens=tokens, state=state)
    scores = log_probabilities(folder, "int8", together[-1])
    for row in range(5):
        one = slice(row, row + 1)
        for cut in (1, 4, 8):
            first, between = run(folder, "recurrent", "int8", tokens=tokens[:cut, one], state=state[one])
            second, alone = run(folder, "recurrent", "int8", tokens=tokens[cut:, one], state=between)
            np.testing.assert_array_equal(np.concatenate([first, second]), together[:, one])
            np.testing.assert_array_equal(alone, after[one])
        np.testing.assert_array_equal(log_probabilities(folder, "int8", second[-1]), scores[one])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_last_numbers_of_a_state_are_the_input_of_the_softmax(folder: Path, precision: Precision) -> None:
    state = np.zeros((2, state_size(folder)), np.float32)
    hidden, after = run(folder, "recurrent", precision, tokens=np.arange(12).reshape(6, 2), state=state)
    np.testing.assert_array_equal(after[:, -hidden.shape[-1] :], hidden[-1])


def test_a_row_of_zeros_is_quantised_to_zeros(tmp_path: Path) -> None:
    model = GatedRecurrentLanguageModel(vocabulary_size=PIECES, **SHAPES["odd"])
    torch.nn.init.zeros_(model.embedding.weight)
    for name, content in export_gated_language_model(model.eval()).items():
        (tmp_path / name).write_bytes(content)
    state = np.zeros((1, state_size(tmp_path)), np.float32)
    hidden, after = run(tmp_path, "recurrent", "int8", tokens=np.zeros((2, 1), np.int64), state=state)
    assert np.isfinite(hidden).all()
    assert np.isfinite(after).all()


def test_weights_are_stored_once_in_half_precision(model: GatedRecurrentLanguageModel, folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    assert stored.keys() == model.state_dict().keys()
    for name, value in stored.items():
        assert value.dtype == np.float16
        np.testing.assert_array_equal(value.astype(np.float32), model.state_dict()[name].numpy())
    for graph in ("recurrent", "softmax"):
        loaded = onnx.load(folder / f"{graph}.fp32.onnx", load_external_data=False)
        matrices = [tensor for tensor in loaded.graph.initializer if len(tensor.dims) == 2]
        assert matrices
        assert all(tensor.external_data for tensor in matrices)


def state_size(folder: Path) -> int:
    size: int = session(folder / "recurrent.fp32.onnx", 1).get_inputs()[1].shape[1]
    return size
