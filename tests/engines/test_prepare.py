"""From a model folder to engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines import prepare as module
from engines.cache import EngineCache
from engines.call import examples
from engines.networks import networks_of
from engines.plan import PlanOptions, PlanReport
from engines.prepare import (
    Engines,
    build,
    build_network_plan,
    build_served,
    find,
    find_graph,
    graph_key,
    plan_key,
    prepare,
    served_key,
    weights_digest,
)
from models.families import image_to_video
from models.spec.model import Eight
from models.temporal_decoder import decode_in_chunks
from tests.support.exportable import by_rotation
from tests.support.tiny_towers import write_tiny_ldm_upscaler, write_tiny_sd, write_tiny_sd3, write_tiny_svd

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
ROOT = Path(__file__).resolve().parents[2]
BUCKET = {"batch": 2, "height": 8, "width": 8}


def never(*_: object) -> None:
    raise AssertionError("nothing should be exported")


def test_a_warm_cache_exports_and_loads_nothing(
    sdxl_folder: Path, cache: EngineCache, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "export", never)
    again = prepare(sdxl_folder, cache, threads=1)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(again.decoder(latents), engines.decoder(latents))


def test_what_the_cache_holds_is_found_without_an_export(
    sdxl_folder: Path, cache: EngineCache, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "export", never)
    assert find(sdxl_folder, cache) == build(sdxl_folder, cache)
    assert find(sdxl_folder, EngineCache(tmp_path)) == {}


def test_8_bits_are_an_entry_of_their_own_and_need_inputs_once(
    sdxl_folder: Path, cache: EngineCache, engines: Engines, tmp_path: Path
) -> None:
    plain = networks_of(sdxl_folder)["vae/decoder"]
    kinds: list[Eight] = ["int8", "fp8"]
    keys = [served_key(replace(plain, eight=kind), precision) for kind in kinds for precision in ("fp32", "bf16")]
    assert len({key.digest for key in (*keys, graph_key(plain), graph_key(plain, "bf16"))}) == 6
    assert served_key(plain) == graph_key(plain) and find_graph(plain, cache) == build(sdxl_folder, cache)[plain.name]
    shutil.copytree(build(sdxl_folder, cache)["unet"].parent.parent, tmp_path / "cache")
    own, asked = EngineCache(tmp_path / "cache"), replace(plain, eight="int8")
    with pytest.raises(RuntimeError, match="vae/decoder in int8 needs inputs that occurred"):
        build_served(asked, own)
    assert find_graph(asked, own) is None
    inputs = examples(plain.signature, {"batch": 2, "height": 3, "width": 4})
    path = build_served(asked, own, samples=[inputs])
    assert find_graph(asked, own) == path == build_served(asked, own) != find_graph(plain, own)


def test_a_warm_start_does_not_import_the_exporter(sdxl_folder: Path, cache: EngineCache, engines: Engines) -> None:
    root = build(sdxl_folder, cache)["unet"].parent.parent
    code = (
        "import sys; from pathlib import Path; from engines.cache import EngineCache; from engines.prepare import *\n"
        "prepare(Path(sys.argv[1]), EngineCache(Path(sys.argv[2])), 1)\n"
        "print(sorted({'onnx', 'onnxscript', 'onnx_ir', 'tensorrt_rtx_bindings'} & set(sys.modules)))"
    )
    arguments = [sys.executable, "-c", code, sdxl_folder, root]
    assert subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_tiny_svd, marks=pytest.mark.slow),  # a minute: its layers are in space and time
        *by_rotation([write_tiny_sd, write_tiny_sd3, write_tiny_ldm_upscaler]),
    ],
)
def test_every_system_is_prepared(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model")
    networks = networks_of(tmp_path / "model")
    engines = prepare(tmp_path / "model", EngineCache(tmp_path / "engines"), threads=1)
    assert list(engines.denoisers) == [name for name in networks if name in ("unet", "transformer")]
    assert engines.denoiser.signature == next(iter(networks.values())).signature
    assert engines.decoder.signature == networks["vae/decoder"].signature
    encoder = networks.get("vae/encoder")  # of a model that only enlarges pictures there is none
    assert (engines.encoder and engines.encoder.signature) == (encoder and encoder.signature)
    if write is write_tiny_svd:  # the same clip from a latent as with torch, chunks and all
        model = image_to_video.load(tmp_path / "model")
        latents = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = model.decoder(latents, 2)
        got = decode_in_chunks(engines.decoder, latents, 2)  # type: ignore[arg-type]  # one output
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (decode_in_chunks(engines.decoder, latents, 3) - expected).abs().max() > 1e-3  # type: ignore[arg-type]


def test_weights_and_config_are_part_of_the_key(sdxl_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sdxl_folder, copy)

    def state() -> tuple[str, str]:
        return graph_key(networks_of(copy)["unet"]).digest, weights_digest(copy)

    states = {state()}
    assert states == {(graph_key(networks_of(sdxl_folder)["unet"]).digest, weights_digest(sdxl_folder))}
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-6}))
    states.add(state())
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    states.add(state())
    assert len({key for key, _ in states}) == len({digest for _, digest in states}) == 3


def test_precision_and_everything_a_plan_is_asked_for_are_part_of_the_key(sdxl_folder: Path) -> None:
    network = networks_of(sdxl_folder)["unet"]
    bucket = {**BUCKET, "tokens": 20}
    options = [
        PlanOptions("tensorrt-rtx", (bucket,)),
        PlanOptions("tensorrt-rtx", (bucket, {**bucket, "batch": 4})),
        PlanOptions("tensorrt-rtx", ({**bucket, "width": 4},)),
        PlanOptions("tensorrt-rtx", (bucket,), ("sm80",)),
        PlanOptions("tensorrt-rtx", (bucket,), ("sm80", "sm89")),
        PlanOptions("tensorrt-rtx", (bucket,), weight_streaming=True),
        PlanOptions("tensorrt-rtx", (bucket,), refittable=True),
    ]
    digests = {plan_key(network, precision, option).digest for option in options for precision in ("fp16", "bf16")}
    digests |= {graph_key(network, precision).digest for precision in ("fp32", "fp16", "bf16")}
    assert len(digests) == 2 * len(options) + 3
    decoder = networks_of(sdxl_folder)["vae/decoder"]  # overflows in fp16, so both are one graph of fp32
    assert graph_key(decoder, "fp16") == graph_key(decoder, "fp32") != graph_key(decoder, "bf16")


def test_a_plan_is_built_from_the_graph_once(sdxl_folder: Path, tmp_path: Path, engines: Engines,
                                             cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    network, options = networks_of(sdxl_folder)["vae/decoder"], PlanOptions("tensorrt-rtx", (BUCKET,), ("sm89",))
    path = build_network_plan(network, cache, "fp32", options)
    report = PlanReport.read(path.parent)
    assert report.architectures == ("sm89",) and report.bytes == path.stat().st_size
    monkeypatch.setattr(module, "build_plan", never)
    assert build_network_plan(network, cache, "fp32", options) == path


def test_the_key_covers_all_code_that_makes_the_graph() -> None:
    # In a process of its own: here other tests have imported everything.
    ours = "[m.__file__ for n, m in sys.modules.items() if n.startswith(('models.', 'kernels.', 'engines.'))]"
    code = f"import sys, engines.export, engines.networks; print(*{ours})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = (Path(name).relative_to(ROOT) for name in done.stdout.split())
    files = {path.as_posix() for path in paths if path.name != "__init__.py"} - {"engines/cache.py"}
    assert {"models/unet.py", "engines/precision.py"} <= files
    assert files <= set(module._CODE)


@pytest.mark.parametrize("missing", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_an_incomplete_folder_is_refused(sdxl_folder: Path, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sdxl_folder, copy)
    (copy / missing).unlink()
    with pytest.raises(ValueError, match=Path(missing).parts[0]):
        weights_digest(copy)
    with pytest.raises(ValueError, match=Path(missing).parts[0]):
        build(copy, EngineCache(tmp_path / "engines"))
