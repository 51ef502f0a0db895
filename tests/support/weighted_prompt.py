"""What AUTOMATIC1111's web UI makes of a weighted prompt, written down once more in float64.

Its documented rules: the text is read in chunks of the tower's length less two, each with a start and an end of its
own; each token's vector is multiplied by its weight; then every chunk is scaled so that its mean is what it was.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

Parts = list[list[tuple[str, float]]]
"""Between each ``BREAK`` and the next: text and its weight."""


def reference_chunks(tokenizer, parts: Parts) -> list[tuple[list[int], list[float]]]:
    """Token ids and weights of each chunk."""
    room = tokenizer.model_max_length - 2
    chunks = []
    for part in parts:
        pairs = [(token, w) for text, w in part for token in tokenizer(text).input_ids[1:-1]]
        while True:
            now, pairs = pairs[:room], pairs[room:]
            rest = room - len(now)
            ids = [tokenizer.bos_token_id, *(t for t, _ in now), tokenizer.eos_token_id]
            chunks.append((ids + [tokenizer.pad_token_id] * rest, [1.0, *(w for _, w in now), 1.0] + [1.0] * rest))
            if not pairs:
                break
    return chunks


@torch.inference_mode()
def reference_context(tokenizer, network: nn.Module, parts: Parts, penultimate: bool) -> Tensor:
    """Context [C * N, D] float64 of one tower."""
    exact = copy.deepcopy(network).double()
    contexts = []
    for ids, weights in reference_chunks(tokenizer, parts):
        output = exact(torch.tensor([ids]), output_hidden_states=True)
        hidden = (output.hidden_states[-2] if penultimate else output.last_hidden_state)[0]
        weighted = hidden * torch.tensor(weights, dtype=torch.float64)[:, None]
        contexts.append(weighted * (hidden.mean() / weighted.mean()))
    return torch.cat(contexts)
