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
    shapes = ((batch, 4, height, width), (batch,), (batch, tokens, 12), (batch, 20))
    x, c_noise, context, vector = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x, c_noise.abs() * 300, context, vector]


def decoder_inputs(batch: int, seed: int = 0) -> list[Tensor]:
    return [torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))]


@pytest.fixture(params=["denoiser", "decoder"])
def network(request: pytest.FixtureRequest, engines: Engines) -> tuple[OnnxSession, Callable[..., list[Tensor]]]:
    made = {"denoiser": unet_inputs, "decoder": decoder_inputs}
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


def test_threads_do_not_change_bytes(model_folder: Path, cache: EngineCache, engines: Engines) -> None:
    unet, decoder = build(model_folder, cache)
    assert torch.equal(OnnxSession(unet, threads=2)(*unet_inputs(5)), engines.denoiser(*unet_inputs(5)))
    assert torch.equal(OnnxSession(decoder, threads=2)(*decoder_inputs(5)), engines.decoder(*decoder_inputs(5)))


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


@pytest.mark.parametrize(
    ("index", "bad", "error", "message"),
    [
        (0, torch.zeros(2, 4, 8, 8, dtype=torch.float64), TypeError, "x is torch.float64"),
        (1, torch.zeros(2, dtype=torch.int64), TypeError, "c_noise is torch.int64"),
        (1, [1.0, 2.0], TypeError, "c_noise is a list"),
        (0, torch.zeros(2, 4, 8, 8, device="meta"), ValueError, "x is on meta"),
        (0, torch.zeros(2, 3, 8, 8), ValueError, r"expected \(batch, 4, 2\*height, 2\*width\)"),
        (0, torch.zeros(2, 4, 7, 8), ValueError, "x has shape"),
        (0, torch.zeros(2, 4, 8), ValueError, "x has shape"),
        (0, torch.zeros(0, 4, 8, 8), ValueError, "x has shape"),
        (2, torch.zeros(3, 7, 12), ValueError, "context has shape .* with .*'batch': 2"),
        (2, torch.zeros(2, 0, 12), ValueError, "context has shape"),
        (3, torch.zeros(2, 21), ValueError, "vector has shape"),
    ],
)
def test_wrong_inputs_are_named(
    engines: Engines, index: int, bad: Tensor, error: type[Exception], message: str
) -> None:
    inputs = unet_inputs(2)
    inputs[index] = bad
    with pytest.raises(error, match=message):
        engines.denoiser(*inputs)


def test_wrong_number_of_inputs(engines: Engines) -> None:
    assert engines.denoiser.inputs == NAMES
    with pytest.raises(TypeError, match=r"expected 4 tensors \(x, c_noise, context, vector\), got 3"):
        engines.denoiser(*unet_inputs(2)[:3])


def test_numerics_name_the_graph_and_not_the_threads(model_folder: Path, cache: EngineCache, engines: Engines) -> None:
    unet, _ = build(model_folder, cache)
    assert engines.denoiser.numerics == OnnxSession(unet, threads=2).numerics
    assert engines.denoiser.numerics != engines.decoder.numerics
    assert engines.denoiser.numerics.startswith("onnxruntime-") and engines.denoiser.numerics.endswith("/any")
