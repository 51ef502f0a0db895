"""Every network of a model folder that can become an engine: where its weights lie, its signature, how to load it.

Specs are read at once, weights only when a network is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from engines.precision import Precision
from engines.signature import Port, Signature, port
from engines.wrappers import T5Network, VAEEncoder
from models.adapters.file import DENOISER
from models.conditioners.text import load_clip_text
from models.conditioners.video import load_clip_vision
from models.guidance import SKIP_LAYERS
from models.spec.config import read_json
from models.spec.memory import T5
from models.spec.mmdit import PATCH, MMDiTSpec, read_mmdit_spec
from models.spec.model import ONE_TOWER, Eight, ModelSpec
from models.spec.unet import UNetSpec, read_unet_spec
from models.spec.vae import (
    AutoencoderSpec,
    ConvAutoencoderSpec,
    VQSpec,
    read_part_spec,
    read_temporal_vae_spec,
    read_tiny_spec,
)
from models.temporal_decoder import TemporalVAEDecoder
from models.vae import VAEDecoder
from models.weights import load_mmdit, load_part, load_temporal_vae, load_tiny_decoder, load_unet, load_vae

if TYPE_CHECKING:
    from models.adapters.whole import AdapterSet

T5_TOKENS = 256
"""What a prompt of Stable Diffusion 3 has behind CLIP's tokens."""
DISCRETE_TIMES = 1000.0
"""c_noise of a discrete schedule is below this."""


@dataclass(frozen=True)
class Network:
    """One network of a model folder."""

    name: str
    """``unet``, ``transformer``, ``transformer/skip-layers``, ``vae/decoder``, ``vae/encoder``, ``vae_tiny/decoder``,
    ``text_encoder``, ``text_encoder_2``, ``text_encoder_3`` or ``image_encoder``."""
    folder: Path
    """Where its config and weights lie."""
    signature: Signature
    load: Callable[[], nn.Module]
    """Reads the weights, in fp32 and evaluation mode."""
    overflows_in_fp16: bool = False
    """Whether activations exceed the range of fp16."""
    eight: Eight | None = None
    """What the model's card asks its engine to multiply in."""
    adapters: str = ""
    """Identity of the set of adapters in its weights; empty for none."""

    @property
    def is_tower(self) -> bool:
        """As :func:`is_tower`."""
        return is_tower(self.name)

    def precision(self, asked: Precision) -> Precision:
        """What it runs in where ``asked`` is asked for: fp32 in place of an fp16 that would overflow."""
        return "fp32" if asked == "fp16" and self.overflows_in_fp16 else asked


def networks_of(folder: Path, adapters: AdapterSet | None = None) -> dict[str, Network]:
    """The networks of a diffusers folder by name, the denoiser first.

    Args:
        folder: the model's.
        adapters: to have in the weights of its denoisers. Text towers stay as they are.

    Raises:
        ValueError: not a folder of a system that is served here.
    """
    spec = ModelSpec.read(folder)
    found = [*_denoisers(folder, spec), *_autoencoders(folder, spec), *_towers(folder, spec)]
    eight = {"vae/decoder" if part == "vae" else part: kind for part, kind in spec.eight_bits.items()}
    # Variants of the denoiser are the same weights, and are as it is.
    parts = {network.name: network.name if "vae" in network.name else network.folder.name for network in found}
    networks = {network.name: replace(network, eight=eight.get(parts[network.name])) for network in found}
    if adapters is None or DENOISER not in adapters.parts:
        return networks
    return networks | {
        name: replace(network, load=partial(_load_fused, spec, adapters, name), adapters=adapters.identity)
        for name, network in networks.items()
        if network.folder.name == spec.system.denoiser
    }


def _denoisers(folder: Path, spec: ModelSpec) -> Iterator[Network]:
    if spec.system.denoiser == "unet":
        # Stable Video Diffusion is conditioned on one token, whose attention is exact without the queries.
        tokens = 1 if spec.system.task == "image-to-video" else "tokens"
        signature = unet_signature(read_unet_spec(folder), tokens)
        yield Network("unet", folder / "unet", signature, partial(load_unet, folder))
        return
    from models.families.text_to_image import SKIPPED_LAYERS  # with all conditioners

    mmdit = read_mmdit_spec(folder)
    signature, weights = mmdit_signature(mmdit), folder / "transformer"
    yield Network("transformer", weights, signature, partial(load_mmdit, folder))
    if mmdit.depth > max(SKIPPED_LAYERS):
        name = f"transformer/{SKIP_LAYERS}"
        yield Network(name, weights, signature, lambda: load_mmdit(folder).skipping(SKIPPED_LAYERS).eval())


def _autoencoders(folder: Path, spec: ModelSpec) -> Iterator[Network]:
    part, clips = spec.system.autoencoder, spec.system.task == "image-to-video"
    vae = read_temporal_vae_spec(folder) if clips else read_part_spec(folder, part)

    def load_decoder() -> nn.Module:
        return (TemporalVAEDecoder(load_temporal_vae(folder)) if clips else VAEDecoder(load_part(folder, part))).eval()

    def load_encoder() -> nn.Module:
        return VAEEncoder(load_temporal_vae(folder) if clips else load_vae(folder)).eval()

    decoder, encoder = decoder_signature(vae, vae.downscale, clips), encoder_signature(vae)
    yield Network("vae/decoder", folder / part, decoder, load_decoder, vae.force_upcast)
    if not isinstance(vae, VQSpec):  # whose encoder no request reaches
        yield Network("vae/encoder", folder / part, encoder, load_encoder, vae.force_upcast)
    if (tiny := folder / "vae_tiny").is_dir():
        small = read_tiny_spec(tiny)
        signature = decoder_signature(small, small.downscale)
        yield Network("vae_tiny/decoder", tiny, signature, lambda: VAEDecoder(load_tiny_decoder(tiny)).eval())


def _towers(folder: Path, spec: ModelSpec) -> Iterator[Network]:
    if (vision := folder / "image_encoder").is_dir():
        yield Network("image_encoder", vision, vision_signature(vision), partial(load_clip_vision, vision))
    penultimate = spec.pipeline not in ONE_TOWER
    for suffix in ("", "_2"):
        if (text := folder / f"text_encoder{suffix}").is_dir():
            tokenizer = folder / f"tokenizer{suffix}"
            projected = "Projection" in read_json(text / "config.json")["architectures"][0]
            load = partial(load_clip_text, text, projected, penultimate)
            yield Network(text.name, text, clip_text_signature(text, tokenizer, projected), load)
    if (text := folder / "text_encoder_3").is_dir():
        yield Network(text.name, text, t5_signature(text), partial(_load_t5, text), overflows_in_fp16=True)


def is_tower(name: str) -> bool:
    """Whether a network of this name reads text or pictures for the conditioning, as networks of transformers do."""
    return name.startswith(("text_encoder", "image_encoder"))


def runs_as_engine(network: Network, adapters: AdapterSet | None = None) -> bool:
    """Whether it is served as an engine where engines are of free shapes: not T5, which is held in half precision or 8
    bits, and no tower where adapters change one, since they are put into the weights of the denoiser alone."""
    changed = frozenset() if adapters is None else adapters.parts - {DENOISER}
    return network.name != T5 and not (network.is_tower and changed)


def bucket(network: Network, spec: ModelSpec, lanes: int, width: int, height: int) -> dict[str, int]:
    """What a network's symbols stand for when ``lanes`` pictures or clips of ``width`` x ``height`` pixels are made,
    prompts of one chunk each.

    Raises:
        ValueError: the network cannot make that size.
    """
    downscale = read_part_spec(spec.folder, spec.system.autoencoder).downscale
    factors = {axis.symbol: axis.factor for axis in network.signature.inputs[0].axes}
    in_pixels = network.signature.inputs[0].name == "pictures"
    sizes = {"batch": lanes, "tokens": _tokens(spec.folder), "frames": spec.frames}
    for symbol, pixels in (("height", height), ("width", width)):
        unit = factors.get(symbol, 1) * (1 if in_pixels else downscale)
        if pixels % unit:
            raise ValueError(f"{symbol} is {pixels} pixels, expected a multiple of {unit}")
        sizes[symbol] = pixels // unit
    return {symbol: sizes[symbol] for symbol in network.signature.symbols}


def _tokens(folder: Path) -> int:
    """Tokens of a context of one chunk: CLIP's, and T5's behind them where the model has it."""
    config = next((folder / name / "tokenizer_config.json" for name in ("tokenizer", "tokenizer_2")
                   if (folder / name).is_dir()), None)  # fmt: skip
    clip = int(read_json(config)["model_max_length"]) if config else 1
    return clip + (T5_TOKENS if (folder / "text_encoder_3").is_dir() else 0)


def unet_signature(spec: UNetSpec, tokens: int | str = "tokens") -> Signature:
    """(x, c_noise, context, vector) of :class:`models.unet.UNet`; sizes are multiples of 2^(levels - 1), as for the
    network itself."""
    factor = 2 ** (len(spec.block_out_channels) - 1)
    frames = ("frames",) if spec.temporal else ()
    sides = (f"{factor}*height", f"{factor}*width")
    classes = float(spec.num_class_embeds)
    vector = ("batch", spec.vector_dim)
    return Signature(
        inputs=(
            port("x", ("batch", *frames, spec.in_channels, *sides)),
            port("c_noise", ("batch",), values="uniform", below=DISCRETE_TIMES),
            port("context", ("batch", tokens if spec.context_dim else 1, spec.context_dim)),
            port("vector", vector, values="whole", below=classes) if classes else port("vector", vector),
        ),
        outputs=(port("output", ("batch", *frames, spec.out_channels, *sides)),),
    )


def mmdit_signature(spec: MMDiTSpec) -> Signature:
    """(x, c_noise, context, vector) of :class:`models.mmdit.MMDiT`."""
    sides = (f"{PATCH}*height", f"{PATCH}*width")
    return Signature(
        inputs=(
            port("x", ("batch", spec.in_channels, *sides)),
            port("c_noise", ("batch",), values="uniform", below=DISCRETE_TIMES),
            port("context", ("batch", "tokens", spec.context_dim)),
            port("vector", ("batch", spec.vector_dim)),
        ),
        outputs=(port("output", ("batch", spec.out_channels, *sides)),),
        largest={"height": spec.position_size, "width": spec.position_size},
    )


def decoder_signature(spec: AutoencoderSpec, downscale: int, clips: bool = False) -> Signature:
    """latents -> pictures of :class:`models.vae.VAEDecoder`, or of :class:`models.temporal_decoder.TemporalVAEDecoder`,
    which takes clips."""
    frames = ("frames",) if clips else ()
    sides = (f"{downscale}*height", f"{downscale}*width")
    return Signature(
        inputs=(port("latents", ("batch", *frames, spec.latent_channels, "height", "width")),),
        outputs=(port("output", ("batch", *frames, spec.out_channels, *sides)),),
    )


def encoder_signature(spec: ConvAutoencoderSpec) -> Signature:
    """pictures -> moments of :class:`engines.wrappers.VAEEncoder`."""
    sides = (f"{spec.downscale}*height", f"{spec.downscale}*width")
    return Signature(
        inputs=(port("pictures", ("batch", spec.in_channels, *sides)),),
        outputs=(port("output", ("batch", 2 * spec.latent_channels, "height", "width")),),
    )


def clip_text_signature(tower: Path, tokenizer: Path, projected: bool) -> Signature:
    """ids -> (tokens, pooled) of :class:`models.conditioners.text.ClipText`, for the tokenizer's one length."""
    config = read_json(tower / "config.json")
    length = read_json(tokenizer / "tokenizer_config.json")["model_max_length"]
    width = config["hidden_size"]
    return Signature(
        inputs=(_ids(length, config["vocab_size"]),),
        outputs=(
            port("tokens", ("batch", length, width)),
            port("pooled", ("batch", config["projection_dim"] if projected else width)),
        ),
    )


def t5_signature(tower: Path) -> Signature:
    """ids -> tokens of :class:`engines.wrappers.T5Network`."""
    config = read_json(tower / "config.json")
    return Signature(
        inputs=(_ids("tokens", config["vocab_size"]),),
        outputs=(port("tokens", ("batch", "tokens", config["d_model"])),),
    )


def vision_signature(tower: Path) -> Signature:
    """pixels -> token of :class:`models.conditioners.video.ClipVision`."""
    config = read_json(tower / "config.json")
    side = config["image_size"]
    return Signature(
        inputs=(port("pixels", ("batch", config.get("num_channels", 3), side, side)),),
        outputs=(port("token", ("batch", config["projection_dim"])),),
    )


def _ids(length: int | str, vocabulary: int) -> Port:
    return port("ids", ("batch", length), "int64", "whole", float(vocabulary))


def _load_fused(spec: ModelSpec, adapters: AdapterSet, name: str) -> nn.Module:
    from models.adapters.whole import fuse_denoiser  # with all conditioners
    from models.families.text_to_image import load_denoisers

    denoisers = load_denoisers(spec.folder)
    fuse_denoiser(denoisers, spec, adapters.read())
    return cast(nn.Module, denoisers[name])


def _load_t5(tower: Path) -> nn.Module:
    from transformers import T5EncoderModel

    from models.encoders import load_encoder

    return T5Network(load_encoder(T5EncoderModel, tower)).eval()
