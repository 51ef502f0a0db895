"""One tiny model folder, exported once for every test here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engines.cache import EngineCache
from engines.prepare import Engines, prepare
from models.spec.unet import UNetSpec
from models.spec.vae import VAESpec
from models.unet import UNet
from models.vae import VAE
from models.weights import save_network

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 24],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "projection_class_embeddings_input_dim": 20,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "use_linear_projection": True,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
VAE_CONFIG = {"latent_channels": 4, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random networks whose outputs vary with all their inputs."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae = UNet(UNetSpec.from_config(UNET)), VAE(VAESpec.from_config(VAE_CONFIG))
        for network in (unet, vae):
            _strengthen(network)
    save_network(folder / "unet", UNET, unet.state_dict(), torch.float32)
    save_network(folder / "vae", VAE_CONFIG, vae.state_dict(), torch.float32)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def engines(model_folder: Path, cache: EngineCache) -> Engines:
    return prepare(model_folder, cache, threads=1)


@torch.no_grad()
def _strengthen(network: nn.Module) -> None:
    # As they are initialised, the networks' outputs hardly vary: nearly equal ones would pass any comparison.
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.mul_(2.0)
