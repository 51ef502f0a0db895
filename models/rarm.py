"""The retrieval-augmented autoregressive model: pictures as codes, one after the other, beside retrieved neighbours
(Blattmann et al. 2022, "Semi-Parametric Neural Image Synthesis", section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kernels.attention import attention
from models.blocks import Attention, TransformerBlock
from models.spec.rarm import RARMSpec


@dataclass
class Cache:
    """What the codes so far have left behind, by layer: keys and values [B, N, C] of them and of the neighbours."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    neighbours: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Codes so far."""
        return self.seen[0][0].shape[1] if self.seen else 0


class RARM(nn.Module):
    """Logits of the next code, from the codes before it and a set of neighbours. Without positions the neighbours are a
    set: their order does not matter."""

    def __init__(self, spec: RARMSpec) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(spec.codes + 2, spec.width)
        self.positions = nn.Parameter(torch.zeros(spec.length, spec.width))
        self.blocks = nn.ModuleList(
            [TransformerBlock(spec.width, spec.heads, spec.context_dim) for _ in range(spec.layers)]
        )
        self.logits = nn.Linear(spec.width, spec.codes)

    def layers(self) -> list[TransformerBlock]:
        """The blocks in their order."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def mask_token(self) -> int:
        """Stands for a code that is not told."""
        return self.spec.codes

    @property
    def start_token(self) -> int:
        """Comes before the first code."""
        return self.spec.codes + 1

    def forward(self, tokens: Tensor, neighbours: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, N, codes] of the codes that follow.

        Args:
            tokens: int64 [B, N]; with an empty cache the start token and codes, else the one token after those that the
                cache has seen (N = 1).
            neighbours: [B, k, context_dim]; not read again once the cache holds them.
            cache: filled on the way, so that the next call needs the next token alone.

        Raises:
            ValueError: more tokens than the model has positions, or several with a cache that is not empty.
        """
        before, count = cache.length if cache else 0, tokens.shape[1]
        if before + count > self.spec.length:
            raise ValueError(f"{before + count} tokens, at most {self.spec.length} have positions")
        if before and count != 1:
            raise ValueError(f"{count} tokens after {before} in the cache, expected 1")
        x = self.tokens(tokens) + self.positions[before : before + count]
        kept = Cache()
        for i, block in enumerate(self.layers()):
            seen = cache.seen[i] if before and cache else None
            beside = cache.neighbours[i] if before and cache else _keys_values(block.attn2, neighbours)
            x, seen = _advance(block, x, seen, beside)
            kept.seen.append(seen)
            kept.neighbours.append(beside)
        if cache is not None:
            cache.seen, cache.neighbours = kept.seen, kept.neighbours
        return self.logits(x)


@torch.inference_mode()
def sample_codes(
    model: RARM,
    neighbours: Tensor,
    generator: torch.Generator,
    top_k: int = 256,
    temperature: float = 1.0,
    guidance: float = 1.0,
) -> Tensor:
    """Draw pictures as codes: int64 [B, length].

    Args:
        neighbours: [B, k, context_dim]; k = 1 with a text embedding alone is text to image.
        generator: on the CPU.
        top_k: only so many of the likeliest codes are drawn from.
        temperature: of the logits, above 0.
        guidance: weight of the logits against those without neighbours (zeros in their place); 1 is off.

    Raises:
        ValueError: ``top_k`` or ``temperature`` is out of range.
    """
    if not 1 <= top_k <= model.spec.codes or not temperature > 0.0:
        raise ValueError(f"top_k {top_k} must be 1 to {model.spec.codes} and temperature {temperature} above 0")
    lanes = [neighbours] if guidance == 1.0 else [neighbours, torch.zeros_like(neighbours)]
    caches = [Cache() for _ in lanes]
    tokens = torch.full((len(neighbours), 1), model.start_token)
    codes = []
    for _ in range(model.spec.length):
        outputs = [model(tokens, lane, cache)[:, -1] for lane, cache in zip(lanes, caches, strict=True)]
        logits = outputs[0] if len(lanes) == 1 else torch.lerp(outputs[1], outputs[0], guidance)
        best, places = (logits.float().cpu() / temperature).topk(top_k)
        drawn = torch.multinomial(best.softmax(-1), 1, generator=generator)
        tokens = places.gather(1, drawn)
        codes.append(tokens)
    return torch.cat(codes, dim=1)


def _advance(
    block: TransformerBlock, x: Tensor, seen: tuple[Tensor, Tensor] | None, beside: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One block: x [B, N, C] and the keys and values before it -> the same after it."""
    normed = block.norm1(x)
    fresh = _keys_values(block.attn1, normed)
    keys, values = fresh if seen is None else (torch.cat([s, f], dim=1) for s, f in zip(seen, fresh, strict=True))
    heads = block.attn1.heads
    alone = attention(block.attn1.to_q(normed), keys, values, heads, causal=seen is None)
    x = x + block.attn1.to_out[0](alone)
    x = x + block.attn2.to_out[0](attention(block.attn2.to_q(block.norm2(x)), *beside, heads))
    return x + block.ff(block.norm3(x)), (keys, values)


def _keys_values(layer: Attention, source: Tensor) -> tuple[Tensor, Tensor]:
    return layer.to_k(source), layer.to_v(source)
