"""Static int8 of convolutional networks (Jacob et al. 2018, arXiv 1712.05877), by ONNX Runtime's own tool."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
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


def quantised(
    graph: bytes, weights: bytes, feeds: Iterable[Mapping[str, Array]], known: Mapping[str, tuple[float, int]]
) -> bytes:
    """Return a float32 graph, which reads `weights` from the file WEIGHTS, with OPERATORS in int8 and its own weights.

    Activations are unsigned with a scale a tensor, from their least and largest values for the `feeds`; weights are
    signed with a scale an output channel. Of `known` tensors scale and zero point are given.
    """
    scales = {
        name: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(scale, np.float32),
                "zero_point": np.array(zero, np.uint8),
            }
        ]
        for name, (scale, zero) in known.items()
    }
    options: dict[str, Any] = {"TensorQuantOverrides": scales}
    with TemporaryDirectory() as scratch:
        source, folded, target = (Path(scratch, name) for name in ("source.onnx", "folded.onnx", "target.onnx"))
        Path(scratch, WEIGHTS).write_bytes(weights)
        source.write_bytes(graph)
        folding = ort.SessionOptions()  # of constants and of padding
        folding.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        folding.optimized_model_filepath = str(folded)
        folding.add_session_config_entry("session.disable_quant_qdq", "1")  # leaves a quantised input alone
        ort.InferenceSession(source, folding, providers=["CPUExecutionProvider"])
        quantize_static(
            folded,
            target,
            _Feeds(iter(feeds)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*OPERATORS],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )
        return target.read_bytes()
