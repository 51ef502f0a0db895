"""Single files of whole pipelines: which system one holds, and where in it the parts lie."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

UNET = "model.diffusion_model."
VAE = "first_stage_model."
VAE_ENCODER_OF_CLIPS = "conditioner.embedders.3.encoder."


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    name: str
    signature: str
    """A key that files of this layout have, and those of layouts further down do not."""
    scopes: Mapping[str, tuple[str, ...]]
    """By part, as its folder is called: the prefixes of its keys. More than one where halves lie apart."""
    ignored: tuple[str, ...] = ()
    """Patterns of keys that no network here takes."""

    def part_keys(self, part: str, keys: Iterable[str]) -> list[str]:
        """The keys that belong to a part, without those that are ignored."""
        return [key for key in keys if key.startswith(self.scopes[part]) and not self.is_ignored(key)]

    def is_ignored(self, key: str) -> bool:
        """Whether a key is known and of no use here."""
        return any(re.fullmatch(pattern, key) for pattern in (*_BUFFERS, *self.ignored))

    def is_open_clip(self, part: str) -> bool:
        """Whether this encoder is written as OpenCLIP does, and not as transformers does."""
        return ".model." in self.scopes[part][0]

    def strangers(self, keys: Iterable[str]) -> list[str]:
        """Keys that belong to no part and are not known to be of no use."""
        scopes = tuple(prefix for prefixes in self.scopes.values() for prefix in prefixes)
        return sorted(key for key in keys if not key.startswith(scopes) and not self.is_ignored(key))


_BUFFERS = (
    r"model_ema\..*",
    r"(.*\.)?position_ids",
    r"(.*\.)?logit_scale",
    r"(sqrt_|log_one_minus_|one_minus_)?(recip(m1)?_)?alphas_cumprod(_prev)?|sqrt_(recip(m1)?|one_minus)_alphas_cumprod",
    r"betas|logvar|lvlb_weights|posterior_.*|scale_factor|global_step|denoiser\.(sigmas|weighting\..*)",
    r"model_sampling\..*|first_stage_model\.loss\..*",
)
"""Averages kept for training, tables of schedules, and numbers of training: all formats have some of them."""
_OPEN_CLIP_TEXT = r"conditioner\.embedders\.0\.open_clip\.model\.(?!visual\.).*"
LAYOUTS = (
    Layout(
        "sd3",
        "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
        {
            "transformer": (UNET,),
            "vae": (VAE,),
            "text_encoder": ("text_encoders.clip_l.transformer.",),
            "text_encoder_2": ("text_encoders.clip_g.transformer.",),
            "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
        },
    ),
    Layout(
        "svd",
        "conditioner.embedders.0.open_clip.model.visual.proj",
        {
            "unet": (UNET,),
            "vae": (f"{VAE}decoder.", VAE_ENCODER_OF_CLIPS),
            "image_encoder": ("conditioner.embedders.0.open_clip.model.visual.",),
        },
        # The picture that conditions a clip passes an autoencoder of its own, whose decoder is not used; the encoder
        # beside the temporal decoder is not used either.
        (
            _OPEN_CLIP_TEXT,
            r"first_stage_model\.(?!decoder\.).*",
            r"conditioner\.embedders\.3\.encoder\.(decoder|post).*",
        ),
    ),
    Layout(
        "sdxl",
        "conditioner.embedders.1.model.positional_embedding",
        {
            "unet": (UNET,),
            "vae": (VAE,),
            "text_encoder": ("conditioner.embedders.0.transformer.",),
            "text_encoder_2": ("conditioner.embedders.1.model.",),
        },
    ),
    Layout(
        "sdxl-refiner",
        "conditioner.embedders.0.model.positional_embedding",
        {"unet": (UNET,), "vae": (VAE,), "text_encoder_2": ("conditioner.embedders.0.model.",)},
    ),
    Layout(
        "x4-upscaler",
        f"{UNET}label_emb.weight",
        {"unet": (UNET,), "vae": (VAE,), "text_encoder": ("cond_stage_model.model.",)},
        (r"cond_stage_model\.model\.text_projection", r"low_scale_model\..*"),
    ),
    Layout(
        "sd2",
        "cond_stage_model.model.positional_embedding",
        {"unet": (UNET,), "vae": (VAE,), "text_encoder": ("cond_stage_model.model.",)},
        (r"cond_stage_model\.model\.text_projection",),
    ),
    Layout(
        "sd1",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        {"unet": (UNET,), "vae": (VAE,), "text_encoder": ("cond_stage_model.transformer.",)},
    ),
    Layout(
        "latent-diffusion",
        f"{UNET}input_blocks.0.0.weight",
        {"unet": (UNET,), "vae": (VAE,), "vqvae": (VAE,)},
        (r"cond_stage_model\..*",),  # what conditions these is of many kinds
    ),
)


def detect(keys: Collection[str]) -> Layout:
    """The layout of a file with these keys.

    Raises:
        ValueError: none of those known here.
    """
    for layout in LAYOUTS:
        if layout.signature in keys:
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"keys such as {sorted(keys)[:3]} are of no layout known here; known: {known}")
