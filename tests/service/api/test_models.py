"""The list of models through the OpenAI client, and what each lets a request choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.spec.model import ModelSpec
from service.settings import Settings
from tests.service.api.conftest import Server, run_server


def test_models(shared: Server) -> None:
    assert [model.id for model in shared.openai.models.list()] == ["tiny", "tiny-two", "tiny-video"]
    tiny = shared.openai.models.retrieve("tiny").model_dump()
    assert tiny["object"] == "model" and tiny["owned_by"] == "darkroom" and tiny["created"] > 0
    assert tiny["sizes"] == ["64x64", "64x32"] and (tiny["default_steps"], tiny["default_guidance"]) == (10, 4.0)
    assert "euler" in tiny["schedulers"] and tiny["default_scheduler"] == "euler"
    assert tiny["capabilities"] == ["text-to-image", "image-to-image", "inpainting"] and tiny["frames"] is None
    assert tiny["decoders"] == ["full"] and tiny["loras"] == [] and tiny["license"] is None
    assert shared.http.get("/v1/models/tiny-two").json()["license"] == "cc0-1.0"
    clips = shared.http.get("/v1/models/tiny-video").json()
    assert (clips["task"], clips["capabilities"], clips["frames"]) == ("image-to-video", ["image-to-video"], 14)
    assert shared.http.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


def test_what_the_worker_has_loaded(server: Server) -> None:
    server.ready()
    states = {model["id"]: model["state"] for model in server.http.get("/v1/models").json()["data"]}
    assert states == {"tiny": "loaded", "tiny-two": "installed", "tiny-video": "installed"}


@pytest.fixture
def adapted(tmp_path: Path, models: dict[str, ModelSpec]) -> Iterator[Server]:
    """A server with a folder of two adapters."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("ink.safetensors", "clay.safetensors", "notes.txt"):
        (folder / name).touch()
    yield from run_server(Settings(data=tmp_path / "data", loras_path=folder), models)


def test_adapters_are_listed_and_named_by_requests(adapted: Server) -> None:
    for model in ("tiny", "tiny-video"):
        assert adapted.http.get(f"/v1/models/{model}").json()["loras"] == ["clay", "ink"]
    asked = [{"name": "ink", "scale": 0.5}, {"name": "clay", "scale": 0}]
    job = adapted.http.post("/v1/jobs", json={"prompt": "x", "loras": asked}).json()
    assert job["request"]["loras"] == [{"name": "ink", "scale": 0.5}], "one of no weight is none"
    for wrong, said in ((["../ink"], "installed: clay, ink"), (["ink", "ink"], "once"), (["notes"], "not installed")):
        body = {"prompt": "x", "loras": [{"name": name} for name in wrong]}
        error = adapted.http.post("/v1/jobs", json=body).json()["error"]
        assert error["param"] == "loras" and said in error["message"]
