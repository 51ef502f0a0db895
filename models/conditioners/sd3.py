"""Prompts -> what Stable Diffusion 3 is conditioned on (Esser et al. 2024, section 5 and appendix B)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioners.condition import Condition, TowerOf, on_torch
from models.conditioners.prompt import plain_text
from models.conditioners.text import SideBySide, TextTower, load_tower
from models.spec.config import read_json, reading
from models.spec.memory import T5
from models.tokenizers import load_t5_tokenizer

if TYPE_CHECKING:
    from transformers import T5EncoderModel, T5Tokenizer

T5Use = Literal["encode", "drop", "zeros"]
"""Encode with T5; leave its tokens out, which makes the sequence shorter; or zeros in their place, as diffusers does
for a folder without T5."""
CLIP_TOWERS = ("text_encoder", "text_encoder_2")
T5_TOKENS = 256
MAX_T5_TOKENS = 512


class T5Tower:
    """The encoder of T5 v1.1 (Raffel et al. 2020) with its tokenizer. Its padding is not masked, and is read too."""

    def __init__(self, tokenizer: T5Tokenizer, network: T5EncoderModel) -> None:
        self.tokenizer = tokenizer
        self.network = network

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        eight_bit: bool = False,
    ) -> T5Tower:
        """Read ``text_encoder_3`` and ``tokenizer_3`` of a diffusers folder, with weights in ``dtype`` or most of them
        in 8 bits.

        Raises:
            ValueError: ``dtype`` is neither fp32 nor bf16. T5's activations exceed the range of fp16.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype of T5 is {dtype}, expected torch.float32 or torch.bfloat16")
        from transformers import T5EncoderModel  # takes seconds, and models without T5 do without

        from models.encoders import load_encoder, load_t5_in_8_bits

        if eight_bit:
            network = load_t5_in_8_bits(folder / T5, dtype, device)
        else:
            network = load_encoder(T5EncoderModel, folder / T5, dtype, device)
        return cls(load_t5_tokenizer(folder / "tokenizer_3"), network)

    def encode(self, text: str, tokens: int) -> Tensor:
        """Plain text, padded and cut to ``tokens`` tokens -> [tokens, D] fp32 on the CPU."""
        ids = self.tokenizer(
            text, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        ).input_ids
        hidden: Tensor = self.network(ids.to(self.network.device)).last_hidden_state[0]
        return hidden.float().cpu()


class SD3Conditioner:
    """Two projected CLIP towers side by side, widened with zeros to T5's width, then T5's tokens. Both towers' pooled
    texts make the vector. An empty negative prompt is an encoded empty text.

    Weights inside a prompt count for the CLIP towers; T5 reads the words alone, in one piece.
    """

    def __init__(self, towers: tuple[TextTower, TextTower], t5: T5Tower | None, width: int, t5_use: T5Use) -> None:
        """
        Args:
            towers: CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, both with projections.
            t5: needed for "encode".
            width: of a context token, ``joint_attention_dim`` of the transformer.
            t5_use: what stands behind the CLIP tokens.

        Raises:
            ValueError: "encode" without T5, or T5 of another width.
        """
        if t5_use == "encode" and t5 is None:
            raise ValueError("t5='encode' needs text_encoder_3, which the model has not; expected 'drop' or 'zeros'")
        if t5 is not None and t5.network.config.d_model != width:
            raise ValueError(f"text_encoder_3 d_model={t5.network.config.d_model}, expected the context's {width}")
        self.text = SideBySide(towers)
        self.t5 = t5
        self.width = width
        self.t5_use = t5_use

    @classmethod
    def load(
        cls,
        folder: Path,
        t5: T5Use | None = None,
        dtype: torch.dtype = torch.float32,
        t5_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        eight_bit_t5: bool = False,
        tower_of: TowerOf = on_torch,
    ) -> SD3Conditioner:
        """Read the text encoders of a diffusers folder.

        Args:
            folder: whose ``text_encoder_3`` may be absent.
            t5: None encodes with T5 where the folder has it, and else drops its tokens. T5 is read for "encode"
                alone.
            dtype: of the CLIP towers.
            t5_dtype: fp32 or bf16.
            device: of all of them.
            eight_bit_t5: hold most of T5's weights in 8 bits, and compute with them in ``t5_dtype``.
            tower_of: says what is called in place of a CLIP tower.

        Raises:
            ValueError: the folder has no T5 to encode with, its CLIP towers are together wider than its context, or
                ``t5_dtype`` is not one of the two.
        """
        has_t5 = (folder / T5).is_dir()
        use: T5Use = t5 or ("encode" if has_t5 else "drop")
        width = int(read_json(folder / "transformer" / "config.json")["joint_attention_dim"])
        if (clip := sum(_width(folder / name) for name in CLIP_TOWERS)) > width:
            raise ValueError(f"transformer joint_attention_dim={width}, expected at least the CLIP towers' {clip}")
        load = partial(load_tower, projected=True, penultimate=True, dtype=dtype, device=device, tower_of=tower_of)
        first, second = (load(folder, name) for name in CLIP_TOWERS)
        third = T5Tower.load(folder, t5_dtype, device, eight_bit_t5) if has_t5 and use == "encode" else None
        return cls((first, second), third, width, use)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Of the CLIP towers that are on torch, and T5's where it is used."""
        return (*self.text.networks, *([] if self.t5 is None else [self.t5.network]))

    @torch.inference_mode()
    def encode(self, prompt: str, width: int, height: int, t5_tokens: int = T5_TOKENS, chunks: int = 1) -> Condition:
        """Condition of one prompt: context [C * 77 + ``t5_tokens``, D], without the latter when T5's are dropped.

        Args:
            prompt: with weights and ``BREAK``s.
            width: of the picture; the network is not told.
            height: of the picture; the network is not told.
            t5_tokens: 1 to 512. 256 is what diffusers takes and 77 what the authors' code takes; T5 reads its padding,
                so the vectors of the words depend on it a little.
            chunks: fill the CLIP tokens up to so many chunks with empty ones.

        Raises:
            ValueError: ``t5_tokens`` is out of range.
        """
        del width, height
        if not 1 <= t5_tokens <= MAX_T5_TOKENS:
            raise ValueError(f"t5_tokens={t5_tokens} is out of range, expected 1 to {MAX_T5_TOKENS}")
        context, pooled = self.text.encode(prompt, chunks)
        context = F.pad(context, (0, self.width - context.shape[-1]))
        if self.t5_use == "zeros":
            context = torch.cat([context, torch.zeros(t5_tokens, self.width)])
        elif self.t5_use == "encode" and self.t5 is not None:
            context = torch.cat([context, self.t5.encode(plain_text(prompt), t5_tokens)])
        return Condition(context, torch.cat(pooled))

    def encode_pair(
        self, prompt: str, negative_prompt: str, width: int, height: int, t5_tokens: int = T5_TOKENS
    ) -> tuple[Condition, Condition]:
        """Positive and negative condition of one picture, of equally many tokens."""
        chunks = max(self.text.count(prompt), self.text.count(negative_prompt))
        positive = self.encode(prompt, width, height, t5_tokens, chunks)
        return positive, self.encode(negative_prompt, width, height, t5_tokens, chunks)


def _width(tower: Path) -> int:
    with reading(path := tower / "config.json"):
        return int(read_json(path)["hidden_size"])
