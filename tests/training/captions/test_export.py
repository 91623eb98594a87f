"""Exported captioners compute the torch modules' outputs, in any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import fx, nn
from torchvision.models import get_model  # type: ignore[import-untyped]

from app.errors import SettingsError
from app.images import normalised
from app.models.captioner import Captioner, Inject
from app.models.recurrent import CELLS, Cell
from app.runtime.onnx_session import Precision, session
from app.runtime.recurrent_engine import WEIGHTS
from training.captions.export import export_captions
from training.captions.features import backbone

WORDS, FEATURES = 30, 12
MODES: tuple[Inject, ...] = ("chapter", "init", "pre")
TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "int8": 0.1}
Floats = npt.NDArray[np.float32]


class Network(nn.Module):
    """A little of all that MobileNetV2 and the ResNets have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, FEATURES, 3, stride=2, bias=False)
        self.relu6, self.relu, self.pool = nn.ReLU6(), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.mean, self.dropout = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) -> (B, F)."""
        x = self.relu6(self.first(x))
        x = x + self.pointwise(self.relu6(self.depthwise(x)))
        x = self.relu(self.last(self.pool(x)))
        features: torch.Tensor = self.dropout(torch.flatten(self.mean(x), 1))
        return features


@pytest.fixture(scope="module")
def network() -> fx.GraphModule:
    """Its weights already those that a float16 file keeps."""
    torch.manual_seed(3)
    return fx.symbolic_trace(Network().half().float().eval())


@pytest.fixture(scope="module")
def photographs() -> npt.NDArray[np.uint8]:
    """Eight coarse patterns."""
    coarse = np.random.default_rng(4).integers(0, 256, (8, 7, 7, 3), np.uint8)
    return coarse.repeat(32, 1).repeat(32, 2)


def captioner(cell: Cell, inject: Inject, *, tied: bool = False) -> Captioner:
    torch.manual_seed(5)
    model = Captioner(
        vocabulary_size=WORDS,
        feature_size=FEATURES,
        embedding_size=16 if tied else 8,
        hidden_size=16,
        cell=cell,
        inject=inject,
        tied=tied,
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model.half().float().eval()


def exported(model: Captioner, network: fx.GraphModule, folder: Path) -> Path:
    for name, content in export_captions(model, network).items():
        (folder / name).write_bytes(content)
    return folder


def run(folder: Path, graph: str, precision: Precision, **feed: npt.NDArray[Any]) -> list[Floats]:
    return list(session(folder / f"{graph}.{precision}.onnx", 1).run(None, feed))


@pytest.fixture(scope="module")
def folder(network: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported files of a captioner like the best one."""
    return exported(captioner("gru", "init", tied=True), network, tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize("inject", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_decoder_s_graphs_compute_what_the_module_computes(
    cell: Cell, inject: Inject, network: fx.GraphModule, tmp_path: Path
) -> None:
    model = captioner(cell, inject)
    exported(model, network, tmp_path)
    features, tokens = torch.rand(3, FEATURES), torch.randint(WORDS, (4, 3))
    with torch.inference_mode():
        for precision, tolerance in TOLERANCES.items():
            state = model.begin(features)
            (found,) = run(tmp_path, "begin", precision, features=features.numpy())
            np.testing.assert_allclose(found, state, atol=tolerance)
            for words in tokens:  # the image term of the chapter is used up after the first
                said, state = model.step(words, state)
                log_probabilities, found = run(tmp_path, "step", precision, tokens=words.numpy(), state=found)
                np.testing.assert_allclose(log_probabilities, said, atol=tolerance)
                np.testing.assert_allclose(found, state, atol=tolerance)


def test_a_tied_matrix_is_stored_once_and_read_twice(folder: Path) -> None:
    model = captioner("gru", "init", tied=True)
    assert "output.weight" not in load_file(folder / WEIGHTS)
    state, tokens = torch.rand(2, 16), torch.tensor([3, 7])
    with torch.inference_mode():
        said, _ = model.step(tokens, state)
    log_probabilities, _ = run(folder, "step", "fp32", tokens=tokens.numpy(), state=state.numpy())
    np.testing.assert_allclose(log_probabilities, said, atol=1e-5)


def test_the_network_normalises_pixels_as_the_module_expects_them(
    folder: Path, network: fx.GraphModule, photographs: npt.NDArray[np.uint8]
) -> None:
    with torch.inference_mode():
        expected = network(torch.from_numpy(normalised(photographs))).numpy()
    assert expected.std() > 0.05
    (found,) = run(folder, "cnn", "fp32", pixels=photographs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_torchvision_s_networks_are_translated(name: str, photographs: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    torch.manual_seed(6)
    save_file(get_model(name, weights=None).state_dict(), tmp_path / "random.safetensors")
    network = backbone(name, tmp_path / "random.safetensors").module.half().float()
    assert isinstance(network, fx.GraphModule)
    with torch.inference_mode():
        expected = network(torch.from_numpy(normalised(photographs[:2]))).numpy()
    model = Captioner(
        vocabulary_size=WORDS,
        feature_size=expected.shape[1],
        embedding_size=8,
        hidden_size=8,
        cell="rnn",
        inject="init",
    )
    exported(model, network, tmp_path)
    (found,) = run(tmp_path, "cnn", "fp32", pixels=photographs[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_layer_that_is_not_known_is_rejected_by_name(tmp_path: Path) -> None:
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Softplus()))
    with pytest.raises(SettingsError, match=r"backbone: expected layers of .*Conv2d.*; found .*Softplus.* at _1"):
        exported(captioner("rnn", "init"), network, tmp_path)


def test_an_int8_row_is_the_same_bit_for_bit_in_any_batch(folder: Path) -> None:
    generator = np.random.default_rng(7)
    features = generator.uniform(0, 1, (5, FEATURES)).astype(np.float32)
    features[3] *= 1000  # a neighbour that would spoil a scale shared by the batch
    tokens = generator.integers(WORDS, size=5)
    (state,) = run(folder, "begin", "int8", features=features)
    said, after = run(folder, "step", "int8", tokens=tokens, state=state)
    for row in range(5):
        one = slice(row, row + 1)
        (alone,) = run(folder, "begin", "int8", features=features[one])
        np.testing.assert_array_equal(alone, state[one])
        said_alone, after_alone = run(folder, "step", "int8", tokens=tokens[one], state=alone)
        np.testing.assert_array_equal(said_alone, said[one])
        np.testing.assert_array_equal(after_alone, after[one])


def test_weights_are_stored_once_in_half_precision_and_the_fp32_graphs_point_at_them(
    folder: Path, network: fx.GraphModule
) -> None:
    stored, pointed = load_file(folder / WEIGHTS), set[str]()
    assert all(value.dtype == np.float16 for value in stored.values())
    assert {f"cnn.{name}" for name in network.state_dict()} <= stored.keys()
    content = (folder / WEIGHTS).read_bytes()
    for graph in ("cnn", "begin", "step"):
        loaded = onnx.load(folder / f"{graph}.fp32.onnx", load_external_data=False)
        for tensor in loaded.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                assert place["location"] == WEIGHTS
                start, end = int(place["offset"]), int(place["offset"]) + int(place["length"])
                names = {
                    n for n, v in stored.items() if v.tobytes() == content[start:end] and v.shape == tuple(tensor.dims)
                }
                assert names
                pointed |= names
            else:
                assert np.prod(tensor.dims) < 64  # biases, sizes and scales; no matrix
    assert pointed >= {name for name, value in stored.items() if value.ndim > 1}
