"""Random model folders of the other published systems, each small enough for a CPU, made by the published classes.

Every folder is a complete diffusers pipeline: networks, encoders, tokenizers and scheduler. Widths are unequal wherever
a mix-up would otherwise fit, and every parameter is redrawn at a scale that matters.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMSuperResolutionPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UNetSpatioTemporalConditionModel,
    VQModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.support.tiny_xl import END, SCHEDULER, UNET, VAE, _tower_config, _write_tokenizer, randomise

POOLED = 28
"""Width of a CLIP tower's projection."""
T5_WIDTH = 72
"""More than both CLIP towers of SD3 together, so that their tokens are widened with zeros."""
T5_WORDS = ["▁a", "▁red", "▁cat", "▁dog", "▁and", "re", "d", "c", "a", "t", "o", "g", "n", "s"]
SD_UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
UPSCALER_UNET = {
    "sample_size": 16,
    "in_channels": 7,
    "out_channels": 4,
    "block_out_channels": (16, 16, 16, 32),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "only_cross_attention": (True, True, True, False),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "num_class_embeds": 1000,
    "norm_num_groups": 8,
}
UPSCALER_VAE = {
    **VAE,
    "block_out_channels": (16, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "scaling_factor": 0.08333,
}
LDM_UPSCALER_UNET = {
    "sample_size": 16,
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (16, 16, 24, 32),
    "down_block_types": (*("DownBlock2D",) * 3, "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", *("UpBlock2D",) * 3),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
LDM_UPSCALER_VQ = {
    "block_out_channels": (16, 16, 24),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "num_vq_embeddings": 60,
    "scaling_factor": 1.0,
}
REFINER_UNET = {**UNET, "cross_attention_dim": 40, "projection_class_embeddings_input_dim": POOLED + 5 * 8}
SD3_TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": T5_WIDTH,
    "pooled_projection_dim": 2 * POOLED,
    "pos_embed_max_size": 24,
}
SD3_VAE = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SVD_UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "num_attention_heads": (2, 4),
    "cross_attention_dim": POOLED,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 3 * 8,
    "num_frames": 3,
}
SVD_VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "layers_per_block": 1,
    "scaling_factor": 0.18215,
}
SVD_VISION = {
    "image_size": 224,  # the published pipeline resizes to this, whatever the tower
    "patch_size": 56,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": POOLED,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SVD_SCHEDULER = {
    **SCHEDULER,
    "prediction_type": "v_prediction",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
}


def write_tiny_sd(folder: Path, generation: Literal[1, 2] = 1) -> None:
    """Write a random Stable Diffusion of about 1.4 MB for pictures of 32 x 32.

    Generation 1 predicts the noise, 2 v with linear projections, and its tokenizer pads with "!".
    """
    second = generation == 2
    options: dict[str, Any] = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if second else {}
    scheduler = (
        DDIMScheduler(**SCHEDULER, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
        if second
        else PNDMScheduler(**SCHEDULER, skip_prk_steps=True, set_alpha_to_one=False)
    )
    with tempfile.TemporaryDirectory() as written:
        tokenizer = _write_tokenizer(Path(written) / "tokenizer", pad_token="!" if second else END)
        pipeline = StableDiffusionPipeline(
            vae=randomise(AutoencoderKL(**{**VAE, "scaling_factor": 0.18215}), 1),
            text_encoder=randomise(
                CLIPTextModel(_tower_config(tokenizer, 24, 3, "gelu" if second else "quick_gelu")), 2
            ),
            tokenizer=tokenizer,
            unet=randomise(UNet2DConditionModel(**{**SD_UNET, **options}), 3),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)


def write_tiny_upscaler(folder: Path) -> None:
    """Write a random x4 upscaler, shown pictures of 16 x 16 in training; its schedules are the published ones."""
    betas = {"beta_start": 0.0001, "beta_end": 0.02}
    sampling = {**betas, "beta_schedule": "scaled_linear", "steps_offset": 1, "prediction_type": "v_prediction"}
    with tempfile.TemporaryDirectory() as written:
        tokenizer = _write_tokenizer(Path(written) / "tokenizer", pad_token="!")
        pipeline = StableDiffusionUpscalePipeline(
            vae=randomise(AutoencoderKL(**UPSCALER_VAE), 1),
            text_encoder=randomise(CLIPTextModel(_tower_config(tokenizer, 24, 3, "gelu")), 2),
            tokenizer=tokenizer,
            unet=randomise(UNet2DConditionModel(**UPSCALER_UNET), 3),
            low_res_scheduler=DDPMScheduler(**betas, beta_schedule="squaredcos_cap_v2"),
            scheduler=DDIMScheduler(**sampling, clip_sample=False, set_alpha_to_one=False),
        )
        pipeline.save_pretrained(folder)


def write_tiny_ldm_upscaler(folder: Path) -> None:
    """Write a random super-resolution of latent diffusion, shown pictures of 16 x 16 in training."""
    pipeline = LDMSuperResolutionPipeline(
        vqvae=randomise(VQModel(**LDM_UPSCALER_VQ), 1),
        unet=randomise(UNet2DModel(**LDM_UPSCALER_UNET), 3),
        scheduler=DDIMScheduler(
            beta_start=0.0015, beta_end=0.0155, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
    )
    pipeline.save_pretrained(folder)


def write_tiny_refiner(folder: Path) -> None:
    """Write a random SDXL refiner: the second tower alone, five numbers beside the pooled text."""
    with tempfile.TemporaryDirectory() as written:
        tokenizer = _write_tokenizer(Path(written) / "tokenizer_2", pad_token="!")
        pipeline = StableDiffusionXLImg2ImgPipeline(
            vae=randomise(AutoencoderKL(**VAE), 1),
            text_encoder=None,
            text_encoder_2=randomise(CLIPTextModelWithProjection(_tower_config(tokenizer, 40, 3, "gelu")), 3),
            tokenizer=None,
            tokenizer_2=tokenizer,
            unet=randomise(UNet2DConditionModel(**REFINER_UNET), 5),
            scheduler=EulerDiscreteScheduler(**SCHEDULER),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
        pipeline.save_pretrained(folder)


def write_tiny_sd3(folder: Path, t5: bool = True) -> None:
    """Write a random Stable Diffusion 3 for pictures of 32 x 32, with or without its third text encoder."""
    with tempfile.TemporaryDirectory() as written:
        first = _write_tokenizer(Path(written) / "tokenizer", pad_token=END)
        second = _write_tokenizer(Path(written) / "tokenizer_2", pad_token="!")
        third = _t5_tokenizer() if t5 else None
        pipeline = StableDiffusion3Pipeline(
            transformer=randomise(SD3Transformer2DModel(**SD3_TRANSFORMER), 1),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=randomise(AutoencoderKL(**SD3_VAE), 2),
            text_encoder=randomise(CLIPTextModelWithProjection(_tower_config(first, 24, 2, "quick_gelu")), 3),
            tokenizer=first,
            text_encoder_2=randomise(CLIPTextModelWithProjection(_tower_config(second, 40, 3, "gelu")), 4),
            tokenizer_2=second,
            text_encoder_3=randomise(T5EncoderModel(_t5_config(third)), 5) if third else None,
            tokenizer_3=third,
        )
        pipeline.save_pretrained(folder)


def write_tiny_svd(folder: Path) -> None:
    """Write a random Stable Video Diffusion: three frames of 32 x 32, pictures seen by a vision tower at 224 x 224."""
    pipeline = StableVideoDiffusionPipeline(
        vae=randomise(AutoencoderKLTemporalDecoder(**SVD_VAE), 1),
        image_encoder=randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**SVD_VISION)), 2),
        unet=randomise(UNetSpatioTemporalConditionModel(**SVD_UNET), 3),
        scheduler=EulerDiscreteScheduler(**SVD_SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.save_pretrained(folder)


def _t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of a few words, their letters and the sentinels."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(word, -float(i + 3)) for i, word in enumerate(T5_WORDS)]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(3))]
    return T5Tokenizer(vocab=[*special, *words, *sentinels], extra_ids=3, model_max_length=512)


def _t5_config(tokenizer: T5Tokenizer) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
