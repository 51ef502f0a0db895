"""CLIP-format text towers: text -> one vector a token, and one for the whole (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.conditioners.condition import TowerOf, on_torch
from models.conditioners.prompt import Chunk, ChunkFormat, split_into_chunks
from models.tokenizers import load_clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TextNetwork = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Token ids int64 [B, N] -> one vector a token [B, N, D], and the pooled text [B, P]: :class:`ClipText`, or an engine
of one."""


class ClipText(nn.Module):
    """A text tower on torch. Its pooled text is the vector at the end token: projected by a tower that has a
    projection, else after the final norm."""

    def __init__(self, clip: CLIPTextModel | CLIPTextModelWithProjection, penultimate: bool) -> None:
        """
        Args:
            clip: in eval mode, unless it is to be trained.
            penultimate: take the output of the last layer but one, before the final layer norm (SDXL, SD3), instead of
                the last layer's after it (Stable Diffusion).

        Raises:
            ValueError: the tower masks its padding, which no network here was trained with.
        """
        super().__init__()
        if getattr(clip.config, "use_attention_mask", False):
            raise ValueError("text encoder config use_attention_mask=True is not supported, expected False")
        self.clip = clip
        self.penultimate = penultimate

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, N] -> one vector a token [B, N, D] and the pooled text [B, P]."""
        output = self.clip(ids.to(self.clip.device), output_hidden_states=True)
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        return output.hidden_states[-2] if self.penultimate else output.last_hidden_state, pooled


class TextTower:
    """A text tower with its tokenizer. What it reads at once is a chunk of ``length`` tokens."""

    def __init__(self, tokenizer: CLIPTokenizer, network: TextNetwork) -> None:
        """
        Args:
            tokenizer: its ``model_max_length`` is the tower's length.
            network: the tower.

        Raises:
            ValueError: the tokenizer's chunks are longer than the tower.
        """
        if isinstance(network, ClipText):
            positions = network.clip.config.max_position_embeddings
            if tokenizer.model_max_length > positions:
                raise ValueError(
                    f"tokenizer model_max_length={tokenizer.model_max_length} is more than the text encoder's "
                    f"max_position_embeddings={positions}"
                )
        self.tokenizer = tokenizer
        self.network = network

    @property
    def length(self) -> int:
        """Tokens in a chunk, with start and end."""
        length: int = self.tokenizer.model_max_length
        return length

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B, length] int64 of plain texts, padded and cut."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids

    def chunks(self, prompt: str, at_least: int = 1) -> list[Chunk]:
        """A prompt with weights as chunks, filled up with empty ones."""
        tokenizer = self.tokenizer
        form = ChunkFormat(self.length, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)

        def tokenize(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            return ids

        return split_into_chunks(prompt, tokenize, form, at_least)

    def encode(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Chunks -> context [C * length, D] and the first chunk's pooled text [P], fp32 on the CPU.

        One chunk at a time: a chunk's bytes must not depend on how many follow.
        """
        hidden, pooled = [], []
        for chunk in chunks:
            tokens, whole = self.network(torch.tensor([chunk.ids]))
            hidden.append(weigh(tokens[0].float().cpu(), chunk.weights))
            pooled.append(whole[0].float().cpu())
        return torch.cat(hidden), pooled[0]


class SideBySide:
    """Text towers that read the same prompt, their vectors joined token by token."""

    def __init__(self, towers: Sequence[TextTower]) -> None:
        """Raises ValueError when the towers differ in length: their tokens could not be joined."""
        self.towers = tuple(towers)
        if len(lengths := {tower.length for tower in self.towers}) > 1:
            raise ValueError(f"tokenizers have model_max_length {sorted(lengths)}, expected one for all text encoders")

    @property
    def networks(self) -> tuple[ClipText, ...]:
        """Of those towers that are on torch, in their order."""
        return tuple(tower.network for tower in self.towers if isinstance(tower.network, ClipText))

    def count(self, prompt: str) -> int:
        """Chunks that the prompt takes: of the tower that needs most."""
        return max(len(tower.chunks(prompt)) for tower in self.towers)

    def encode(self, prompt: str, at_least: int = 1) -> tuple[Tensor, list[Tensor]]:
        """A prompt with weights -> context [C * length, D], C >= ``at_least``, and each tower's pooled text [P]."""
        count = max(self.count(prompt), at_least)
        encoded = [tower.encode(tower.chunks(prompt, count)) for tower in self.towers]
        return torch.cat([context for context, _ in encoded], dim=-1), [pooled for _, pooled in encoded]


def weigh(hidden: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply every token by its weight, then the whole chunk by what restores its mean.

    Args:
        hidden: [N, D] fp32, one tower's output for one chunk.
        weights: N of them. When all are 1 the result is ``hidden`` itself, to the bit.

    Returns:
        [N, D] fp32.
    """
    if all(weight == 1.0 for weight in weights):
        return hidden
    weighted = hidden * hidden.new_tensor(weights)[:, None]
    before, after = hidden.double().mean().item(), weighted.double().mean().item()
    return weighted * (before / after) if after else weighted


def load_tower(
    folder: Path,
    name: str,
    projected: bool,
    penultimate: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tower_of: TowerOf = on_torch,
) -> TextTower:
    """A tower of a diffusers folder with its tokenizer, for inference.

    Args:
        folder: the model's.
        name: of the tower's subfolder: ``text_encoder`` or ``text_encoder_2``.
        projected: whether it has a projection.
        penultimate: as for :class:`ClipText`.
        dtype: on torch.
        device: on torch.
        tower_of: says what is called in its place.
    """
    tokenizer = load_clip_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
    load = partial(load_clip_text, folder / name, projected, penultimate, dtype, device)
    return TextTower(tokenizer, tower_of(name, load))


def load_clip_text(
    folder: Path,
    projected: bool,
    penultimate: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ClipText:
    """The network of a folder such as ``text_encoder`` on torch, for inference; the rest as for :func:`load_tower`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection  # take seconds, and engines do without

    from models.encoders import load_encoder

    if projected:
        return ClipText(load_encoder(CLIPTextModelWithProjection, folder, dtype, device), penultimate).eval()
    return ClipText(load_encoder(CLIPTextModel, folder, dtype, device), penultimate).eval()
