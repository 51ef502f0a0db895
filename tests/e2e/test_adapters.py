"""Adapters through a real server whose plain model runs on engines, as README tells it."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.weights import load_unet
from tests.e2e.test_readme import block, typed
from tests.support.adapters import low_rank, write_peft
from tests.support.server import ServerProcess

CLIENT = (
    'import base64\nfrom openai import OpenAI\nclient = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")\n'
)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, sdxl_engines: Path) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("adapted")
    (folder / "loras").mkdir()
    with ServerProcess(folder / "data", sdxl_folder, sdxl_engines, loras_path=str(folder / "loras")) as server:
        yield server


def test_every_way_of_readme_gives_the_same_picture(adapted: ServerProcess, sdxl_folder: Path, tmp_path: Path) -> None:
    asked = {"prompt": "a red cat 3d", "seed": 1, "loras": [{"name": "ink", "scale": 0.8}]}
    early = adapted.http.post("/v1/images/generations", json=asked)
    assert early.status_code == 400 and "'ink' is not installed" in early.json()["error"]["message"]
    unet = load_unet(sdxl_folder)
    layers = [name.removesuffix(".weight") for name, _ in unet.named_parameters() if name.endswith("to_v.weight")]
    write_peft(adapted.data.parent / "loras" / "ink.safetensors", low_rank(unet, layers, 1), "unet.")
    made = []
    for command, language, holds, before in (
        (["bash", "-euo", "pipefail", "-c"], "sh", "> ink.png", ""),
        ([sys.executable, "-c"], "python", '"ink.png"', CLIENT),
        (["bash", "-euc"], "sh", "--lora ink", ""),
    ):
        typed(command, adapted, tmp_path, before + block(language, holds))
        made.append((tmp_path / "ink.png").read_bytes())
        (tmp_path / "ink.png").unlink()
    plain = adapted.http.post("/v1/images/generations", json={**asked, "loras": []}).json()
    assert len(set(made)) == 1 and base64.b64decode(plain["data"][0]["b64_json"]) not in made
