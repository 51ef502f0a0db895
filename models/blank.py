"""Any network from its published config, without memory for its weights, to learn which parameters it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from models.checkpoints.stored import Namings
from models.mmdit import MMDiT
from models.spec.mmdit import MMDiTSpec
from models.spec.unet import UNetSpec
from models.spec.vae import TemporalVAESpec, VAESpec, VQSpec
from models.temporal_decoder import TemporalDecoderVAE
from models.unet import UNet
from models.vae import VAE
from models.vq import VQ
from models.weights import network_namings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Config = Mapping[str, Any]
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection", "T5EncoderModel")


def _encoder(name: str, config: dict[str, Any]) -> nn.Module:
    import transformers  # takes seconds, and most of what is asked is about our own networks

    cls = getattr(transformers, name)
    network: nn.Module = cls(cls.config_class.from_dict(config))
    return network


_MAKE: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": lambda config: UNet(UNetSpec.from_config(config)),
    "UNet2DModel": lambda config: UNet(UNetSpec.from_config(config)),
    "UNetSpatioTemporalConditionModel": lambda config: UNet(UNetSpec.from_config(config)),
    "SD3Transformer2DModel": lambda config: MMDiT(MMDiTSpec.from_config(config)),
    "AutoencoderKL": lambda config: VAE(VAESpec.from_config(config)),
    "AutoencoderKLTemporalDecoder": lambda config: TemporalDecoderVAE(TemporalVAESpec.from_config(config)),
    "VQModel": lambda config: VQ(VQSpec.from_config(config)),
    **{name: partial(_encoder, name) for name in ENCODERS},
}
"""By the class that a config names."""


def blank_network(config: Config) -> nn.Module:
    """The network of a published config, on the meta device.

    Raises:
        ValueError: the config is of none of the networks that are served here, or makes no sense.
    """
    named = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if named not in _MAKE:
        raise ValueError(f"a network of class {named!r} is not served; known: {', '.join(_MAKE)}")
    try:
        with torch.device("meta"):
            return _MAKE[named](dict(config))
    except ValueError:
        raise
    except Exception as error:  # the library has errors of its own for what a config may hold
        raise ValueError(f"config of a {named} makes no sense: {error}") from error


def namings(network: nn.Module) -> Namings:
    """How published files call the parameters of any network here."""
    if type(network).__name__ not in ENCODERS:
        return network_namings(network)
    from models.encoders import encoder_namings  # as for the networks themselves

    return encoder_namings(cast("PreTrainedModel", network))
