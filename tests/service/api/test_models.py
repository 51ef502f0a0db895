"""The list of models through the OpenAI client."""

from __future__ import annotations

from tests.service.api.conftest import Server


def test_models(shared: Server) -> None:
    assert [model.id for model in shared.openai.models.list()] == ["tiny", "tiny-two"]
    tiny = shared.openai.models.retrieve("tiny").model_dump()
    assert tiny["object"] == "model" and tiny["owned_by"] == "darkroom" and tiny["created"] > 0
    assert tiny["sizes"] == ["64x64", "64x32"] and (tiny["default_steps"], tiny["default_guidance"]) == (10, 4.0)
    assert "euler" in tiny["schedulers"] and tiny["default_scheduler"] == "euler"
    assert shared.http.get("/v1/models/none").json()["error"]["code"] == "model_not_found"
