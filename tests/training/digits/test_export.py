"""Exported digit readers compute the module's outputs, in either precision."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load

from app.models.digits import SIDE, ReNet, RowReader
from app.models.recurrent import CELLS
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS, Floats
from training.digits.export import export_digits
from training.digits.recipe import as_input

READERS: dict[str, Callable[[], RowReader | ReNet]] = {
    "rows": lambda: RowReader(hidden_size=12),
    "rows with a class for no digit": lambda: RowReader(hidden_size=9, outputs=11),
    "renet of grus": lambda: ReNet([(2, 5), (7, 8)], cell="gru"),
    "renet of lstms": lambda: ReNet([(4, 6), (7, 10)], cell="lstm", outputs=10),
    "renet of one layer": lambda: ReNet([(7, 6)], cell="gru"),
    "renet of three layers": lambda: ReNet([(2, 4), (2, 5), (7, 6)], cell="lstm"),
    **{f"rows of {cell}": partial(RowReader, hidden_size=8, cell=cell) for cell in CELLS},
    **{f"renet of {cell}": partial(ReNet, [(4, 6), (7, 8)], cell=cell) for cell in CELLS},
}
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(params=READERS)
def model(request: pytest.FixtureRequest) -> RowReader | ReNet:
    """A reader of each shape whose answers differ from image to image: its weights are larger than fresh ones."""
    made = READERS[request.param]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-0.8, 0.8)
    return made.eval()


@pytest.fixture
def folder(model: RowReader | ReNet, tmp_path: Path) -> Path:
    """Its exported files."""
    for name, content in export_digits(model).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def pixels() -> Pixels:
    """Noise, ink on black, and nothing at all: (6, 28, 28)."""
    found = np.random.default_rng(5).integers(0, 256, (6, SIDE, SIDE), np.uint8)
    found[2:4] = np.where(found[2:4] > 200, found[2:4], 0)
    found[4], found[5] = 0, 255
    return found


def run(folder: Path, precision: Precision, pixels: Pixels) -> Floats:
    return read(session(folder / f"reader.{precision}.onnx", 1), pixels)


def read(opened: ort.InferenceSession, pixels: Pixels) -> Floats:
    logits: Floats = opened.run(None, {"pixels": pixels})[0]
    return logits


@torch.inference_mode()
def by_torch(model: RowReader | ReNet, pixels: Pixels, *, eight_bit: bool = False) -> Floats:
    model.eight_bit = eight_bit
    logits: Floats = model(as_input(torch.from_numpy(pixels))).numpy()
    return logits


def softmax(logits: Floats) -> Floats:
    return torch.from_numpy(logits).softmax(1).numpy()


def test_the_fp32_graph_computes_what_the_module_computes(
    model: RowReader | ReNet, folder: Path, pixels: Pixels
) -> None:
    expected = by_torch(model, pixels)
    assert expected.std(0).min() > 1e-3  # else it would not matter what it computes
    np.testing.assert_allclose(run(folder, "fp32", pixels), expected, atol=1e-5)


def test_the_int8_graph_computes_what_the_module_computes_in_eight_bits(
    model: RowReader | ReNet, folder: Path, pixels: Pixels
) -> None:
    found, expected = softmax(run(folder, "int8", pixels)), softmax(by_torch(model, pixels, eight_bit=True))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    cost = np.abs(found - softmax(by_torch(model, pixels))).max()  # what eight bits cost
    assert np.abs(found - expected).max() < cost / 3


def test_int8_logits_are_the_same_bit_for_bit_in_any_batch(
    model: RowReader | ReNet, folder: Path, pixels: Pixels
) -> None:
    pixels = np.concatenate([pixels, np.random.default_rng(6).integers(0, 256, (27, SIDE, SIDE), np.uint8)])
    opened = session(folder / "reader.int8.onnx", 1)
    together = read(opened, pixels)
    for size in (1, 2, 5, 32):
        split = [read(opened, pixels[start : start + size]) for start in range(0, len(pixels), size)]
        np.testing.assert_array_equal(np.concatenate(split), together)
    np.testing.assert_array_equal(read(opened, pixels[::-1])[::-1], together)


def test_weights_are_stored_as_the_module_has_them(model: RowReader | ReNet) -> None:
    stored = load(export_digits(model)[WEIGHTS])
    assert stored.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert stored[name].dtype == np.float32
        np.testing.assert_array_equal(stored[name], value.numpy())


def test_an_int8_graph_holds_its_recurrent_weights_in_a_byte_each(model: RowReader | ReNet) -> None:
    loaded = onnx.load_from_string(export_digits(model)["reader.int8.onnx"])
    matrices = {tensor.name: tensor for tensor in loaded.graph.initializer if len(tensor.dims) == 2}
    large = matrices.pop("output_weight")
    assert large.data_type == onnx.TensorProto.FLOAT
    assert {tensor.data_type for tensor in matrices.values()} == {onnx.TensorProto.INT8}
    recurrent = sum(value.numel() for name, value in model.named_parameters() if "weight_" in name)
    assert sum(int(np.prod(tensor.dims)) for tensor in matrices.values()) == recurrent


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_graph_takes_pixels_as_they_are_and_states_how_many_classes_there_are(
    model: RowReader | ReNet, folder: Path, precision: Precision
) -> None:
    opened = session(folder / f"reader.{precision}.onnx", 1)
    (taken,), (given,) = opened.get_inputs(), opened.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", ["B", SIDE, SIDE])
    assert (given.name, given.shape) == ("logits", ["B", len(model.output.bias)])
