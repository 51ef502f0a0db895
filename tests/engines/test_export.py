"""Exported graphs against the torch networks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from engines import export
from engines.cache import EngineCache
from engines.prepare import Engines, build
from models.vae import VAEDecoder
from models.weights import load_unet, load_vae

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert expected.std() >= 0.2
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_engines_compute_what_torch_does(model_folder: Path, engines: Engines, batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    x, latents = torch.randn(2, batch, 4, 8, 8, generator=generator)
    times = torch.rand(batch, generator=generator) * 999
    context = torch.randn(batch, 9, 12, generator=generator)
    vector = torch.randn(batch, 20, generator=generator)
    expected = load_unet(model_folder)(x, times, context, vector)
    assert relative_error(engines.denoiser(x, times, context, vector), expected) <= export.TOLERANCE
    expected = VAEDecoder(load_vae(model_folder))(latents)
    assert relative_error(engines.decoder(latents), expected) <= export.TOLERANCE


def test_graphs_hold_standard_operators_of_one_opset_and_no_paths(
    model_folder: Path, cache: EngineCache, engines: Engines
) -> None:
    for path in build(model_folder, cache):
        model = onnx.load(path)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", export.OPSET)]
        assert not model.functions
        assert b".py" not in path.read_bytes()


def test_a_wrong_graph_is_refused(model_folder: Path, cache: EngineCache, engines: Engines) -> None:
    vae = load_vae(model_folder)
    vae.decoder.conv_out.bias.data += 0.01  # no longer what was exported
    _, path = build(model_folder, cache)
    with pytest.raises(RuntimeError, match=r"largest error .* is \d\.\de-\d\d of"):
        export._check(VAEDecoder(vae), path, [{"latents": (2, 4, 4, 4)}])


def test_rows_that_depend_on_their_neighbours_are_refused() -> None:
    def mixing(x: Tensor) -> Tensor:
        return x - x.mean(dim=0)

    with pytest.raises(RuntimeError, match="row 0 of 2 has other bytes"):
        export._check_rows(mixing, Path("mixing.onnx"), [torch.randn(2, 3)])  # type: ignore[arg-type]


def test_exporting_leaves_the_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    export._example({"x": (2, 3), "c_noise": (2,)})
    assert torch.equal(torch.get_rng_state(), before)
