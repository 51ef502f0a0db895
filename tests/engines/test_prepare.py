"""From a model folder to engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engines import prepare as module
from engines.cache import EngineCache
from engines.prepare import Engines, build, prepare, weights_digest

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
ROOT = Path(__file__).resolve().parents[2]


def never(*_: object) -> None:
    raise AssertionError("nothing should be exported")


def test_a_warm_cache_exports_and_loads_nothing(
    model_folder: Path, cache: EngineCache, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("export_unet", "export_decoder", "load_unet", "load_vae"):
        monkeypatch.setattr(module, name, never)
    again = prepare(model_folder, cache, threads=1)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(again.decoder(latents), engines.decoder(latents))


def test_a_warm_start_does_not_import_the_exporter(model_folder: Path, cache: EngineCache, engines: Engines) -> None:
    unet, _ = build(model_folder, cache)
    code = (
        "import sys; from pathlib import Path; from engines.cache import EngineCache; from engines.prepare import *\n"
        "prepare(Path(sys.argv[1]), EngineCache(Path(sys.argv[2])), 1)\n"
        "print(sorted({'onnx', 'onnxscript', 'onnx_ir', 'transformers'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, model_folder, unet.parent.parent]
    assert subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_weights_and_config_are_part_of_the_key(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    keys, digests = {module._key("unet", copy / "unet").digest}, {weights_digest(copy)}
    assert keys == {module._key("unet", model_folder / "unet").digest}  # and where they lie is not
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-6}))
    keys.add(module._key("unet", copy / "unet").digest)
    digests.add(weights_digest(copy))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    keys.add(module._key("unet", copy / "unet").digest)
    digests.add(weights_digest(copy))
    assert len(keys) == len(digests) == 3


def test_the_key_covers_all_code_that_makes_the_graph() -> None:
    # In a process of its own: here other tests have imported everything.
    ours = "[m.__file__ for n, m in sys.modules.items() if n.startswith(('models.', 'kernels.'))]"
    code = f"import sys, engines.export; print(*{ours})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = (Path(name).relative_to(ROOT) for name in done.stdout.split())
    files = {path.as_posix() for path in paths if path.name != "__init__.py"}
    assert "models/unet.py" in files
    assert files <= set(module._EXPORTER_FILES)


@pytest.mark.parametrize("missing", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_an_incomplete_folder_is_refused(model_folder: Path, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / missing).unlink()
    with pytest.raises(ValueError, match=Path(missing).parts[0]):
        weights_digest(copy)
