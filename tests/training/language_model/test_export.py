"""The graphs compute the same as the torch module, and each weight is stored once."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from app.models.language_model import LanguageModel
from app.models.recurrent import CELLS
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS
from training.language_model.export import export_language_model
from training.onnx.cells import operator
from training.onnx.graph import Graph, quantise

WORDS = 50
STEP = 0.025  # of what any layer carries on, after one token in int8
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"embedding_size": 16, "hidden_sizes": (24, 16), "tied": True},
    "untied": {"embedding_size": 16, "hidden_sizes": (16, 16), "tied": False},
    "one layer": {"embedding_size": 16, "hidden_sizes": (20,), "tied": False},
    "three layers": {"embedding_size": 16, "hidden_sizes": (24, 20, 16), "tied": True},
    # What larger weights make of a rounding after forty steps is bounded by nothing.
    **{
        cell: {"embedding_size": 16, "hidden_sizes": (24, 16), "tied": True, "cell": cell, "initial_range": 0.4}
        for cell in CELLS
    },
}
Floats = npt.NDArray[np.float32]


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """A module of each shape, its weights already those that a float16 file keeps."""
    torch.manual_seed(2)
    made = LanguageModel(vocabulary_size=WORDS, **{"initial_range": 0.8} | SHAPES[request.param])
    torch.nn.init.uniform_(made.output.bias, -1, 1)
    for layer in made.recurrent.layers:
        if made.recurrent.cell == "gru":  # which starts at 0
            torch.nn.init.uniform_(layer.get_parameter("bias_hn"), -1, 1)
    return made.half().float().eval()


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    """Its exported files."""
    for name, content in export_language_model(model).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def run(folder: Path, graph: str, precision: Precision, **feed: npt.NDArray[Any]) -> list[Floats]:
    return list(session(folder / f"{graph}.{precision}.onnx", 1).run(None, feed))


def softmax(folder: Path, precision: Precision, hidden: Floats, *, targets: int = 0, count: int = 0) -> list[Any]:
    """All outputs of the softmax graph; of each row so many targets, the first tokens, and so many likeliest."""
    chosen = np.tile(np.arange(targets), (len(hidden), 1))
    return run(folder, "softmax", precision, hidden=hidden, targets=chosen, count=np.array([count]))


def state_size(folder: Path) -> int:
    size: int = session(folder / "recurrent.fp32.onnx", 1).get_inputs()[1].shape[1]
    return size


def by_torch(model: LanguageModel, tokens: torch.Tensor) -> tuple[Floats, Floats, Floats, Floats]:
    """Hidden (T, B, H), the states before and after as the graphs lay them out, log-probabilities (T, B, V)."""
    before = [tuple(torch.rand_like(part) - 0.5 for part in layer) for layer in model.initial_state(tokens.shape[1])]
    with torch.inference_mode():
        hidden, _, after = model(tokens, before)
        log_probabilities = model.logits(hidden).log_softmax(-1)
    flat = [
        torch.cat([part for layer in state for part in reversed(layer)], dim=1).numpy() for state in (before, after)
    ]
    return hidden.numpy(), *flat, log_probabilities.numpy()


def test_the_fp32_graphs_compute_what_the_module_computes(model: LanguageModel, folder: Path) -> None:
    tokens = torch.randint(WORDS, (40, 3))
    hidden, before, after, log_probabilities = by_torch(model, tokens)
    found, found_after = run(folder, "recurrent", "fp32", tokens=tokens.numpy(), state=before)
    np.testing.assert_allclose(found, hidden, atol=1e-5)
    np.testing.assert_allclose(found_after, after, atol=1e-5)
    found, *_ = softmax(folder, "fp32", found.reshape(-1, found.shape[-1]))
    np.testing.assert_allclose(found, log_probabilities.reshape(-1, WORDS), atol=1e-4)


def test_the_graphs_compute_what_onnx_s_own_operators_compute(model: LanguageModel, folder: Path) -> None:
    tokens = torch.randint(WORDS, (40, 3))
    graph = Graph("fp32", {name: value.numpy() for name, value in model.state_dict().items()})
    for n, size in enumerate(model.recurrent.hidden_sizes):
        call = operator(graph, model.recurrent.cell, [f"recurrent.layers.{n}"], f"x{n}")
        shape = graph.constant(f"shape{n}", np.array([40, 3, size]))  # the one direction goes
        graph.lines += [f"y{n} = {call}", f"x{n + 1} = Reshape (y{n}, {shape})"]
    depth, size_in = len(model.recurrent.hidden_sizes), model.embedding.embedding_dim
    signature = f"operators (float[T,B,{size_in}] x0) => (float[T,B,H] x{depth})"
    (folder / "operators.fp32.onnx").write_bytes(graph.model(signature, {}))
    (expected,) = run(folder, "operators", "fp32", x0=model.embedding(tokens).detach().numpy())
    state = np.zeros((3, state_size(folder)), np.float32)
    found, _ = run(folder, "recurrent", "fp32", tokens=tokens.numpy(), state=state)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_int8_step_comes_close_to_one_of_the_module(model: LanguageModel, folder: Path) -> None:
    largest = 0.0
    for _ in range(20):
        tokens = torch.randint(WORDS, (1, 8))
        _, before, after, _ = by_torch(model, tokens)
        _, found = run(folder, "recurrent", "int8", tokens=tokens.numpy(), state=before)
        largest = max(largest, float(np.abs(found - after).max()))
    assert 0 < largest < STEP


def test_the_int8_graphs_come_close_to_the_module(model: LanguageModel, folder: Path) -> None:
    tokens = torch.randint(WORDS, (40, 3))
    hidden, before, after, log_probabilities = by_torch(model, tokens)
    found, found_after = run(folder, "recurrent", "int8", tokens=tokens.numpy(), state=before)
    np.testing.assert_allclose(found, hidden, atol=0.05)
    np.testing.assert_allclose(found_after, after, atol=0.1, rtol=0.1)  # cells are not bounded
    found, *_ = softmax(folder, "int8", hidden.reshape(-1, hidden.shape[-1]))
    np.testing.assert_allclose(found, log_probabilities.reshape(-1, WORDS), atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_last_numbers_of_a_state_are_the_top_layers_output(folder: Path, precision: Precision) -> None:
    tokens = np.arange(12).reshape(6, 2)
    state = np.zeros((2, state_size(folder)), np.float32)
    hidden, after = run(folder, "recurrent", precision, tokens=tokens, state=state)
    np.testing.assert_array_equal(after[:, -hidden.shape[-1] :], hidden[-1])


def test_an_int8_row_is_the_same_bit_for_bit_in_any_batch_and_wherever_it_is_cut(folder: Path) -> None:
    generator = np.random.default_rng(3)
    state = generator.uniform(-1, 1, (5, state_size(folder))).astype(np.float32)
    state[3] *= 1000  # a neighbour that would spoil a scale shared by the batch
    tokens = generator.integers(WORDS, size=(9, 5))
    together, after = run(folder, "recurrent", "int8", tokens=tokens, state=state)
    scores, *_ = softmax(folder, "int8", together[-1])
    for row in range(5):
        one = slice(row, row + 1)
        first, between = run(folder, "recurrent", "int8", tokens=tokens[:4, one], state=state[one])
        second, alone = run(folder, "recurrent", "int8", tokens=tokens[4:, one], state=between)
        np.testing.assert_array_equal(np.concatenate([first, second]), together[:, one])
        np.testing.assert_array_equal(alone, after[one])
        np.testing.assert_array_equal(softmax(folder, "int8", second[-1])[0], scores[one])


def test_the_int8_product_is_the_one_that_is_promised(tiny_model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "softmax.int8.onnx").write_bytes(export_language_model(tiny_model)["softmax.int8.onnx"])
    hidden = np.random.default_rng(4).normal(size=(6, 16)).astype(np.float32)
    hidden[5] = 0  # has no scale of its own
    weight, column_scale = quantise(tiny_model.output.weight.detach().numpy())
    row_scale = np.maximum(np.abs(hidden).max(axis=1, keepdims=True), 1e-30) / 127
    exact = np.rint(hidden / row_scale).astype(np.int64) @ weight.astype(np.int64)
    logits = exact * row_scale * column_scale + tiny_model.output.bias.detach().numpy()
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found, *_ = softmax(tmp_path, "int8", hidden)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_softmax_returns_no_more_of_its_distribution_than_requested(folder: Path, precision: Precision) -> None:
    size = session(folder / f"softmax.{precision}.onnx", 1).get_inputs()[0].shape[1]
    hidden = np.random.default_rng(5).uniform(-1, 1, (4, size)).astype(np.float32)
    whole, *nothing = softmax(folder, precision, hidden)
    assert [each.shape for each in nothing] == [(4, 0)] * 3
    for targets, count in ((1, 0), (0, 7), (3, WORDS)):
        again, of_targets, likeliest, of_likeliest = softmax(folder, precision, hidden, targets=targets, count=count)
        ranked = np.argsort(-whole, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(again, whole)
        np.testing.assert_array_equal(of_targets, whole[:, :targets])
        np.testing.assert_array_equal(likeliest, ranked)
        np.testing.assert_array_equal(of_likeliest, np.take_along_axis(whole, ranked, axis=1))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    )
)
def test_a_quantised_weight_is_off_by_at_most_half_a_step_of_its_column(weight: Floats) -> None:
    quantised, scale = quantise(weight)
    assert quantised.dtype == np.int8
    assert scale.dtype == np.float32
    assert quantised.shape == weight.T.shape
    assert int(quantised.min(initial=0)) >= -127
    largest = np.abs(weight).max(axis=1)
    error = np.abs(quantised.astype(np.float64) * scale.astype(np.float64) - weight.T).max(axis=0)
    assert (error <= np.maximum(largest / 254 * (1 + 1e-4), 1e-30)).all()


def test_weights_are_stored_once_in_half_precision(model: LanguageModel, folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    tied = model.output.weight is model.embedding.weight
    assert stored.keys() == model.state_dict().keys() - ({"output.weight"} if tied else set())
    for name, value in stored.items():
        assert value.dtype == np.float16
        np.testing.assert_array_equal(value.astype(np.float32), model.state_dict()[name].numpy())


def test_the_fp32_graphs_point_at_the_weights_in_their_file(model: LanguageModel, folder: Path) -> None:
    content, pointed = (folder / WEIGHTS).read_bytes(), set()
    (header_length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + header_length])
    for graph in ("recurrent", "softmax"):
        loaded = onnx.load(folder / f"{graph}.fp32.onnx", load_external_data=False)
        inside = sum(len(tensor.raw_data) for tensor in loaded.graph.initializer)
        assert inside < 4 * (WORDS + 4 * 24 * 3) + 500  # biases, sizes and places; no matrix
        for tensor in loaded.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                assert place["location"] == WEIGHTS
                start, end = int(place["offset"]), int(place["offset"]) + int(place["length"])
                (name,) = [
                    n for n in header if header[n]["data_offsets"] == [o - 8 - header_length for o in (start, end)]
                ]
                expected = model.state_dict()[name].half().numpy()
                assert content[start:end] == expected.tobytes()
                assert tuple(tensor.dims) == expected.shape
                pointed.add(name)
    matrices = {name for name in header if name.endswith(("_ih", "_hh", "embedding.weight", "output.weight"))}
    assert pointed == matrices


def test_a_bundle_of_a_large_model_holds_each_weight_once_in_each_precision() -> None:
    model = LanguageModel(vocabulary_size=5000, embedding_size=64, hidden_sizes=(96, 64), tied=True)
    sizes = {name: len(content) for name, content in export_language_model(model).items()}
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * numbers < sizes[WEIGHTS] < 2 * numbers + 2000
    assert sizes["recurrent.fp32.onnx"] < 10_000
    assert sizes["softmax.fp32.onnx"] < 4 * 5000 + 2000  # the bias
    assert sizes["softmax.int8.onnx"] < 5000 * (64 + 4 + 4) + 2000  # weight, scales, bias
