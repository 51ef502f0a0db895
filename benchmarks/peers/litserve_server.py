"""Batching by a library: LitServe collects up to 16 requests within 50 ms, and diffusers' pipeline runs them.

A call of the pipeline has one number of steps and one guidance, so a batch is run in groups that are alike in both. The
annotations are values and not strings, since LitServe reads them.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import litserve  # type: ignore[import-untyped]
import torch
import typer
from PIL import Image

from benchmarks.peers.pipeline import ImagesRequest, Painter, encode

MAX_BATCH = 16
WAIT_S = 0.05
TIMEOUT_S = 1800.0


class BatchedPipeline(litserve.LitAPI):  # type: ignore[misc]
    """The pipeline in LitServe's worker process."""

    def __init__(self, model: Path, size: tuple[int, int], threads: int) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S, api_path="/v1/images/generations")
        self._model, self._size, self._threads = model, size, threads

    def setup(self, device: str) -> None:  # noqa: ARG002 (the library names it)
        """Load the pipeline."""
        torch.set_num_threads(self._threads)
        self._painter = Painter(self._model, *self._size)

    def decode_request(self, request: ImagesRequest) -> ImagesRequest:
        """As it comes."""
        return request

    def batch(self, inputs: Sequence[ImagesRequest]) -> list[ImagesRequest]:
        """A list."""
        return list(inputs)

    def predict(self, requests: Sequence[ImagesRequest]) -> list[Image.Image]:
        """A picture of each request, in groups of equal settings."""
        groups: dict[tuple[int, float, str], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.settings, []).append(i)
        pictures: dict[int, Image.Image] = {}
        for members in groups.values():
            pictures |= zip(members, self._painter.paint([requests[i] for i in members]), strict=True)
        return [pictures[i] for i in range(len(requests))]

    def unbatch(self, output: Sequence[Image.Image]) -> Sequence[Image.Image]:
        """One by one."""
        return output

    def encode_response(self, output: Image.Image) -> dict[str, Any]:
        """OpenAI's answer."""
        return {"created": int(time.time()), "data": [{"b64_json": encode(output)}]}


def main(
    model: Annotated[Path, typer.Option(help="A diffusers SDXL folder.")],
    port: Annotated[int, typer.Option()],
    threads: Annotated[int, typer.Option(help="Threads that one operation may use.")],
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of every picture.")],
) -> None:
    """Serve a diffusers pipeline with LitServe's batching."""
    server = litserve.LitServer(
        BatchedPipeline(model, size, threads),
        accelerator="cpu",
        devices=1,
        timeout=TIMEOUT_S,
        healthcheck_path="/health/ready",
    )
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    typer.run(main)
