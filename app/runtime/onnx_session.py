"""ONNX Runtime sessions."""

from pathlib import Path
from typing import Literal, TypeAlias

import onnxruntime as ort

from app.errors import BundleError

Precision: TypeAlias = Literal["int8", "fp32"]


def session(path: Path, threads: int) -> ort.InferenceSession:
    """Open a graph on `threads` threads that sleep between calls. Raise BundleError if it can't be run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no base but this
        raise BundleError(f"{path}: expected a graph that ONNX Runtime can run: {error}") from error
