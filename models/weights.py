"""Published checkpoints to networks and back: diffusers folders, strict keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.spec.unet import read_unet_spec
from models.spec.vae import read_vae_spec
from models.unet import UNet
from models.vae import VAE

WEIGHTS = "diffusion_pytorch_model.safetensors"
FP16_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"
INDEX_OF = {
    WEIGHTS: "diffusion_pytorch_model.safetensors.index.json",
    FP16_WEIGHTS: "diffusion_pytorch_model.safetensors.index.fp16.json",
}
"""By weight file: the index that takes its place when the weights are in shards."""


def load_unet(folder: Path) -> UNet:
    """The network of ``folder/unet`` in fp32, in evaluation mode.

    Raises:
        ValueError: a file is missing, or keys or shapes do not match its config to the letter.
    """
    unet = UNet(read_unet_spec(folder))
    load_weights(unet, folder / "unet")
    return unet


def load_vae(folder: Path) -> VAE:
    """The autoencoder of ``folder/vae`` in fp32, in evaluation mode; errors as :func:`load_unet`."""
    vae = VAE(read_vae_spec(folder))
    load_weights(vae, folder / "vae")
    return vae


def weight_files(folder: Path) -> list[Path]:
    """The weight files of one network's folder: one file, or the shards its index names."""
    for name, index in INDEX_OF.items():
        if (folder / name).exists():
            return [folder / name]
        if (folder / index).exists():
            shards = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    raise ValueError(f"{folder} holds neither {WEIGHTS} nor {FP16_WEIGHTS}")


def save_network(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write ``config.json`` and one safetensors file the way diffusers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_weights(network: nn.Module, folder: Path) -> None:
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if not path.exists():
            raise ValueError(f"{path} is missing")
        state |= load_file(path)
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(f"{folder}: missing keys {missing[:5]}, unexpected keys {unexpected[:5]}")
    wrong = [f"{k} {tuple(state[k].shape)} != {tuple(own[k].shape)}" for k in own if state[k].shape != own[k].shape]
    if wrong:
        raise ValueError(f"{folder}: shapes differ from the config: {wrong[:5]}")
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
