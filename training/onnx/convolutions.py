"""Static int8 of convolutional networks (Jacob et al. 2018, arXiv 1712.05877), by ONNX Runtime's own tool."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from typing_extensions import override

from app.runtime.recurrent_engine import WEIGHTS
from training.onnx.graph import Array

OPERATORS: Final = ("Conv", "Add", "Clip")  # in int8; all others are in float32


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """The inputs of a network, one after the other."""

    def __init__(self, feeds: Iterator[Mapping[str, Array]]) -> None:
        self._feeds = feeds

    @override
    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._feeds, None)


def quantised(graph: bytes, weights: bytes, feeds: Iterable[Mapping[str, Array]]) -> bytes:
    """Return a float32 graph, which reads `weights` from the file WEIGHTS, with OPERATORS in int8 and its own weights.

    Activations are unsigned with a scale a tensor, from their least and largest values for the `feeds`; weights are
    signed with a scale an output channel. Inputs that the graph dequantises itself keep its scale.
    """
    with TemporaryDirectory() as scratch:
        source, folded, target = (Path(scratch, name) for name in ("source.onnx", "folded.onnx", "target.onnx"))
        Path(scratch, WEIGHTS).write_bytes(weights)
        source.write_bytes(graph)
        quant_pre_process(source, folded, skip_onnx_shape=True, skip_symbolic_shape=True)  # folds constants and padding
        quantize_static(
            folded,
            target,
            _Feeds(iter(feeds)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*OPERATORS],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()
