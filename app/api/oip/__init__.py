"""The Open Inference Protocol, version 2: /v2, as KServe and Triton serve it; HTTP without gRPC."""
