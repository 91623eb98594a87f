"""Torch modules -> ONNX graphs: what all exporters build on, and one module a family."""
