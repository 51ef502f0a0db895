"""What an autoencoder is: plain data, read from a published ``vae/config.json``. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec.config import known, read_json, require


@dataclass(frozen=True)
class VAESpec:
    """A KL autoencoder (Rombach et al. 2022, section 3.1), in the terms of a published ``vae/config.json``."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> VAESpec:
        """Read a published config.

        Raises:
            ValueError: the config asks for something this autoencoder is not.
        """
        require(config, act_fn="silu", latents_mean=None, latents_std=None, shift_factor=None)
        return cls(**known(cls, config))


def read_vae_spec(folder: Path) -> VAESpec:
    """The spec of ``folder/vae``."""
    return VAESpec.from_config(read_json(folder / "vae" / "config.json"))
