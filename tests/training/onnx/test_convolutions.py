"""Static int8 of convolutional networks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from app.runtime.onnx_session import session
from training.onnx.convolutions import quantised

TEXT = """<ir_version: 10, opset_import: ["": 21]>
network (uint8[1,12,12,3] pixels) => (float[1,4] found) {
    normal = DequantizeLinear (pixels, unit, middle)
    photograph = Transpose <perm = [0, 3, 1, 2]> (normal)
    wide = Conv <pads = [1, 1, 1, 1]> (photograph, first)
    bent = Clip (wide, none, most)
    narrow = Conv (bent, second)
    sum = Add (narrow, narrow)
    mean = GlobalAveragePool (sum)
    found = Flatten (mean)
}"""


@pytest.fixture(scope="module")
def network() -> bytes:
    draw = np.random.default_rng(1)
    model = onnx.parser.parse_model(TEXT)
    for name, value in (
        ("unit", np.array(1 / 128, np.float32)),
        ("middle", np.array(127, np.uint8)),
        ("none", np.array(0, np.float32)),
        ("most", np.array(6, np.float32)),
        ("first", draw.normal(size=(8, 3, 3, 3)).astype(np.float32)),
        ("second", draw.normal(size=(4, 8, 1, 1)).astype(np.float32)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())


def photographs(count: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield {"pixels": draw.integers(0, 256, (1, 12, 12, 3), np.uint8)}


@pytest.fixture(scope="module")
def rounded(network: bytes) -> bytes:
    return quantised(network, b"", photographs(8, 2))


def test_int8_is_near_to_float32(network: bytes, rounded: bytes, tmp_path: Path) -> None:
    sessions = list[ort.InferenceSession]()
    for name, graph in (("exact", network), ("rounded", rounded)):
        (tmp_path / name).write_bytes(graph)
        sessions.append(session(tmp_path / name, 1))
    for feed in photographs(4, 3):
        expected, found = (each.run(None, feed)[0] for each in sessions)
        assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


def test_weights_are_int8_with_a_scale_a_channel(rounded: bytes) -> None:
    stored = {each.name: each for each in onnx.load_from_string(rounded).graph.initializer}
    assert stored["first_quantized"].data_type == TensorProto.INT8
    assert stored["first_scale"].dims == [8]


def test_the_quantised_input_keeps_its_scale(rounded: bytes) -> None:
    model = onnx.load_from_string(rounded).graph
    scales = {node.input[1] for node in model.node if node.op_type == "QuantizeLinear" and node.input[0] != "bent"}
    assert "unit" in scales
    assert not [each.name for each in model.initializer if each.name.startswith(("photograph", "normal"))]
