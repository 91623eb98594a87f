"""Serving: text, images, bundles, runtime and the HTTP service."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports its use on Linux too, read when it is loaded
