"""LitServe, tuned as documented: batching, fast queue, one or more workers per model.

python -m tests.bench.serving.peers.lit PORT
"""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
from fastapi import Request

from tests.bench.serving.peers.engines import BATCH, WAIT_S, WORKERS, opened
from tests.bench.serving.peers.routes import Kind, NextWord, Perplexity


class _Model(litserve.LitAPI):  # type: ignore[misc]
    """One kind of request: decoded in the server process, answered in a worker."""

    kind: Kind

    def __init__(self) -> None:
        super().__init__(max_batch_size=BATCH[self.kind], batch_timeout=WAIT_S, api_path=f"/{self.kind}")

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's signature
        self._answers = opened(self.kind)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, payloads: list[Any]) -> list[dict[str, Any]]:
        return self._answers(payloads)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


class NextWordModel(_Model):
    kind = "next-word"

    def decode_request(self, request: NextWord) -> dict[str, Any]:
        return request.model_dump()


class PerplexityModel(_Model):
    kind = "perplexity"

    def decode_request(self, request: Perplexity) -> dict[str, Any]:
        return request.model_dump()


class _ImageModel(_Model):
    def decode_request(self, request: Request) -> bytes:
        content: bytes = request["image"].file.read()  # parsed by LitServe
        return content


class DigitsModel(_ImageModel):
    kind = "digits"


class CaptionsModel(_ImageModel):
    kind = "captions"


def main() -> None:
    """Serve until SIGTERM."""
    models = [NextWordModel(), PerplexityModel(), DigitsModel(), CaptionsModel()]
    server = litserve.LitServer(models, accelerator="cpu", workers_per_device=WORKERS, fast_queue=True, timeout=False)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
