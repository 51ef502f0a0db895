"""The session's call, and the promise that a row's bytes are its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engines.cache import EngineCache
from engines.prepare import Engines, build
from engines.session import OnnxSession

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
NAMES = ("x", "c_noise", "context", "vector")


def unet_inputs(batch: int, seed: int = 0, height: int = 8, width: int = 8, tokens: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, 4, height, width), (batch,), (batch, tokens, 64), (batch, 76))
    x, c_noise, context, vector = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x, c_noise.abs() * 300, context, vector]


def decoder_inputs(batch: int, seed: int = 0) -> list[Tensor]:
    return [torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))]


def encoder_inputs(batch: int, seed: int = 0) -> list[Tensor]:
    return [torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))]


@pytest.fixture(params=["denoiser", "decoder", "encoder"])
def network(request: pytest.FixtureRequest, engines: Engines) -> tuple[OnnxSession, Callable[..., list[Tensor]]]:
    made = {"denoiser": unet_inputs, "decoder": decoder_inputs, "encoder": encoder_inputs}
    return getattr(engines, request.param), made[request.param]


def test_a_row_has_the_same_bytes_at_every_batch_size_and_position(
    network: tuple[OnnxSession, Callable[..., list[Tensor]]],
) -> None:
    session, inputs = network
    row, other = inputs(1, seed=1), inputs(1, seed=2)
    alone = session(*row)[0]
    assert alone.std() >= 0.2
    assert not torch.equal(session(*other)[0], alone)  # else equal bytes would say nothing
    for batch in range(1, 17):
        for position in {0, batch // 2, batch - 1}:
            stacked = inputs(batch, seed=10 + batch)
            for tensor, own in zip(stacked, row, strict=True):
                tensor[position] = own[0]
            assert torch.equal(session(*stacked)[position], alone), (batch, position)


def test_threads_do_not_change_bytes(sdxl_folder: Path, cache: EngineCache, engines: Engines) -> None:
    paths = build(sdxl_folder, cache)
    unet, decoder = (OnnxSession(paths[name], threads=2) for name in ("unet", "vae/decoder"))
    assert torch.equal(unet(*unet_inputs(5)), engines.denoiser(*unet_inputs(5)))
    assert torch.equal(decoder(*decoder_inputs(5)), engines.decoder(*decoder_inputs(5)))


@pytest.mark.parametrize("index", range(4))
def test_every_input_matters(engines: Engines, index: int) -> None:
    first, changed = unet_inputs(2), unet_inputs(2)
    changed[index] = unet_inputs(2, seed=1)[index]
    assert (engines.denoiser(*changed) - engines.denoiser(*first)).abs().max() > 1e-3


def test_other_sizes_and_prompt_lengths(engines: Engines) -> None:
    assert engines.denoiser(*unet_inputs(2, height=6, width=10, tokens=1)).shape == (2, 4, 6, 10)
    assert engines.decoder(torch.zeros(3, 4, 5, 7)).shape == (3, 3, 10, 14)


def test_strided_inputs_are_read_in_their_logical_order(engines: Engines) -> None:
    inputs = unet_inputs(3)
    strided = [tensor.repeat_interleave(2, dim=0)[::2] for tensor in inputs]
    strided[0] = inputs[0].to(memory_format=torch.channels_last)
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(engines.denoiser(*strided), engines.denoiser(*inputs))


def test_results_are_tensors_of_their_own(engines: Engines) -> None:
    first = engines.decoder(*decoder_inputs(1))
    kept = first.clone()
    engines.decoder(*decoder_inputs(1, seed=1))
    assert torch.equal(first, kept)


def test_calls_from_several_threads(engines: Engines) -> None:
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda seed: engines.denoiser(*unet_inputs(2, seed=seed)), range(8)))
    for seed, output in enumerate(outputs):
        assert torch.equal(output, engines.denoiser(*unet_inputs(2, seed=seed)))


def test_wrong_inputs_are_refused_before_anything_runs(engines: Engines) -> None:
    assert engines.denoiser.inputs == NAMES
    with pytest.raises(TypeError, match=r"expected 4 tensors \(x, c_noise, context, vector\), got 3"):
        engines.denoiser(*unet_inputs(2)[:3])
    x, *others = unet_inputs(2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 7, 8\), expected \(batch, 4, 2\*height, 2\*width\)"):
        engines.denoiser(x[:, :, :7], *others)


def test_numerics_name_the_graph_and_not_the_threads(sdxl_folder: Path, cache: EngineCache, engines: Engines) -> None:
    again = OnnxSession(build(sdxl_folder, cache)["unet"], threads=2)
    assert engines.denoiser.numerics == again.numerics
    assert engines.denoiser.numerics != engines.decoder.numerics
    assert engines.denoiser.numerics.startswith("onnxruntime-") and engines.denoiser.numerics.endswith("/any")


def test_what_is_not_there_is_said(sdxl_folder: Path, cache: EngineCache, tmp_path: Path) -> None:
    path = build(sdxl_folder, cache)["vae/decoder"]
    with pytest.raises(ValueError, match="device='tpu' is not one of this ONNX Runtime, which has .*CPU"):
        OnnxSession(path, threads=1, device="tpu")
    (tmp_path / "network.onnx").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"signature\.json is not a signature"):
        OnnxSession(tmp_path / "network.onnx", threads=1)
