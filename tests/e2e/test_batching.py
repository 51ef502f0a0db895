"""Requests that differ in everything share batches, and each keeps the bytes that it has alone."""

from __future__ import annotations

from typing import Any

from tests.support.server import ServerProcess

SOLVERS = ("euler", "euler-ancestral", "ddim", "dpm++2m")
SIXTEEN: list[dict[str, Any]] = [
    {
        "prompt": ("a red cat", "a dog", "red", "cat and dog")[i // 4],
        "num_inference_steps": 4 + 26 * i // 15,
        "scheduler": SOLVERS[i % 4],
        "guidance_scale": (1.0, 3.0, 7.5)[i % 3],
        "negative_prompt": "red" if i % 5 == 0 else "",
        "seed": 1000 + i,
    }
    for i in range(16)
]


def lanes(server: ServerProcess) -> tuple[float, float]:
    """Lanes and batches of the denoiser so far."""
    server.settle()
    return tuple(  # type: ignore[return-value]
        server.metric(f"darkroom_batch_lanes_{what}", stage="denoise") for what in ("sum", "count")
    )


def test_sixteen_together_are_sixteen_alone(server: ServerProcess) -> None:
    assert [SIXTEEN[i]["num_inference_steps"] for i in (0, 15)] == [4, 30]
    start = lanes(server)
    alone = [server.hashes([server.submit(**body)])[0] for body in SIXTEEN]
    middle = lanes(server)
    together = server.hashes(server.together(SIXTEEN))
    end = lanes(server)
    assert together == alone
    assert len({picture for (picture,) in alone}) == 16, "the requests differ, so must the pictures"

    steps = sum(body["num_inference_steps"] * (1 if body["guidance_scale"] == 1.0 else 2) for body in SIXTEEN)
    assert middle[0] - start[0] == end[0] - middle[0] == steps
    assert (middle[0] - start[0]) / (middle[1] - start[1]) <= 2.0, "one by one there is nothing to share"
    assert (end[0] - middle[0]) / (end[1] - middle[1]) > 4.0
