"""Export to ONNX: graphs, recurrent cells and quantization."""
