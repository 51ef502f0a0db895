"""The training loop that every script here shares: schedule, EMA, checkpoints, exact resumption."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

LossFunction = Callable[[int, torch.Generator], Tensor]
"""(step, generator seeded for that step) -> scalar loss. All randomness of a step comes from that generator, so a
resumed run draws what the uncut run would have drawn."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn. The rate rises linearly over ``warmup`` steps, stays at ``peak_lr`` and falls
    along a half cosine to ``final_lr`` over the last ``decay`` part of the steps."""

    steps: int
    peak_lr: float
    final_lr: float
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every_s: float = 60.0

    def learning_rate(self, step: int) -> float:
        """Rate at a zero-based step."""
        start = self.steps * (1.0 - self.decay)
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        if step < start:
            return self.peak_lr
        progress = min(1.0, (step - start) / max(1.0, self.steps - start))
        return self.final_lr + 0.5 * (self.peak_lr - self.final_lr) * (1.0 + math.cos(math.pi * progress))


def train(
    network: nn.Module,
    loss_function: LossFunction,
    recipe: Recipe,
    checkpoint: Path,
    on_save: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train ``network`` in place, resuming from ``checkpoint`` if it exists, and return its moving average.

    Args:
        network: any module; moved nowhere. Its device is the default one for what ``loss_function`` makes.
        loss_function: see :data:`LossFunction`.
        checkpoint: file that is replaced atomically every ``save_every_s`` seconds and at the end.
        on_save: called with the step and the averaged network after each save (samples, reports).

    Raises:
        RuntimeError: the loss stopped being finite.
    """
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.peak_lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    step = _resume(checkpoint, network, average, optimizer)
    device = next(network.parameters()).device
    network.train()
    saved_at, smooth = time.monotonic(), math.nan
    with torch.device(device), _progress() as progress:
        task = progress.add_task(checkpoint.stem, total=recipe.steps, completed=step, loss="")
        while step < recipe.steps:
            generator = torch.Generator(device).manual_seed(recipe.seed * 1_000_003 + step)
            loss = _update(network, loss_function(step, generator), optimizer, recipe, step)
            _average(average, network, min(recipe.ema, (step + 1) / (step + 10)))
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            step += 1
            progress.update(task, completed=step, loss=f"loss {smooth:.4f}")
            if step == recipe.steps or time.monotonic() - saved_at > recipe.save_every_s:
                _save(checkpoint, step, network, average, optimizer)
                if on_save is not None:
                    on_save(step, average)
                saved_at = time.monotonic()
    return average


def _update(network: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RuntimeError(f"the loss became {value} at step {step}")
    return value


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)


def _save(path: Path, step: int, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
