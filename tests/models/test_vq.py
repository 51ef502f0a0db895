"""The vector-quantised autoencoder against the published one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from diffusers import VQModel
from torch import Tensor
from torch.export import Dim

from models.spec.vae import VQSpec
from models.vae import VAEDecoder
from models.vq import VQ, Codebook
from tests.support.tiny_xl import randomise

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
CONFIGS = {
    "f4": {
        "block_out_channels": (8, 12, 16),
        "norm_num_groups": 4,
        "num_vq_embeddings": 96,
        "scaling_factor": 1.0,
        "lookup_from_codebook": True,
    },
    "no-attention": {
        "block_out_channels": (6, 9),
        "norm_num_groups": 3,
        "layers_per_block": 2,
        "latent_channels": 5,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 33,
        "mid_block_add_attention": False,
        "scaling_factor": 0.5,
        "lookup_from_codebook": True,
    },
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def published(request: pytest.FixtureRequest) -> VQModel:
    levels = len(request.param["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return randomise(VQModel(**blocks, **request.param), 1)


def same(published: VQModel) -> VQ:
    vq = VQ(VQSpec.from_config(published.config)).to(published.dtype)
    vq.load_state_dict(published.state_dict(), strict=True)
    return vq.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(published: VQModel) -> VQ:
    return same(published)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


@pytest.fixture(scope="module")
def latents(ours: VQ) -> Tensor:
    return torch.randn((2, ours.spec.vq_embed_dim, 3, 5), generator=torch.Generator().manual_seed(1))


def test_encode_stops_before_quantisation(ours: VQ, published: VQModel, pictures: Tensor, relative: Relative) -> None:
    expected = published.encode(pictures).latents * published.config.scaling_factor
    assert expected.std() > 0.1
    assert relative(ours.encode(pictures), expected) < TOLERANCE


def test_decode_quantises(ours: VQ, published: VQModel, latents: Tensor, relative: Relative) -> None:
    z = latents / published.config.scaling_factor
    expected = published.decode(z).sample
    assert expected.std() > 0.2
    result = ours.decode(latents)
    assert result.shape == (2, 3, 3 * ours.spec.downscale, 5 * ours.spec.downscale)
    assert relative(result, expected) < TOLERANCE
    assert torch.equal(VAEDecoder(ours)(latents), result)
    straight = ours.decoder(ours.post_quant_conv(z))
    assert relative(straight, expected) > 0.1  # a control: what comes out without quantisation


def test_one_formula_in_double_precision(
    published: VQModel, pictures: Tensor, latents: Tensor, relative: Relative
) -> None:
    oracle = deepcopy(published).double()
    exact, scale = same(oracle), published.config.scaling_factor
    assert relative(exact.encode(pictures.double()), oracle.encode(pictures.double()).latents * scale) < 1e-10
    expected = oracle.decode(latents.double() / scale).sample
    assert relative(exact.decode(latents.double()), expected) < 1e-10
    exact.quantize.embedding.weight *= 1.001  # a control: the entries themselves are decoded
    assert relative(exact.decode(latents.double()), expected) > 1e-5


def test_indices_decode_to_their_entries(ours: VQ, published: VQModel, latents: Tensor, relative: Relative) -> None:
    indices = ours.quantize.nearest(latents)
    shape = (*indices.shape, ours.spec.vq_embed_dim)
    expected = published.decode(indices.flatten(), force_not_quantize=True, shape=shape).sample
    assert relative(ours.decode_indices(indices), expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_nearest_entry_is_the_nearest(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = randomise(Codebook(500, 3), 1).to(dtype)
    z = (torch.randn(2, 3, 4, 5, generator=generator) * 0.5).to(dtype)
    differences = z.double().permute(0, 2, 3, 1)[..., None, :] - codebook.embedding.weight.double()
    distances = differences.square().sum(-1)
    found = codebook.nearest(z)
    assert found.dtype == torch.int64
    at_found = distances.gather(-1, found[..., None])[..., 0]
    # Two entries may be equally near to within rounding.
    torch.testing.assert_close(at_found, distances.amin(-1), rtol=0.0, atol=1e-5)
    assert (distances.median(-1).values > at_found + 0.1).all()
    assert torch.equal(codebook(found).movedim(1, -1), codebook.embedding.weight[found])


def test_the_decoder_exports_with_free_sizes() -> None:
    spec = VQSpec(block_out_channels=(4,), layers_per_block=1, norm_num_groups=1, num_vq_embeddings=16)
    vq = randomise(VQ(spec), 1)
    sizes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    shapes = [(2, 3, 4, 6), (3, 3, 5, 2)]
    first, other = (torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in shapes)
    program = torch.export.export(VAEDecoder(vq), (first,), dynamic_shapes={"latents": sizes})
    torch.testing.assert_close(program.module()(other), vq.decode(other))


def test_parameter_count_of_the_published_f4() -> None:
    with torch.device("meta"):
        vq = VQ(VQSpec(block_out_channels=(128, 256, 512), num_vq_embeddings=8192))
    assert sum(p.numel() for p in vq.parameters()) == 55_322_782
