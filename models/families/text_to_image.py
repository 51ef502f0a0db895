"""Text to picture: prepare -> rows -> advance -> decode. A row is one picture in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.solver_step import solver_step
from models.conditioner import Condition, SDXLConditioner
from models.plan import Line, Plan, make_plan
from models.schedule import Schedule
from models.spec.model import ModelSpec
from models.spec.unet import read_unet_spec
from models.spec.vae import read_vae_spec
from models.vae import VAEDecoder
from models.weights import load_unet, load_vae

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x [B, C, h, w], c_noise [B], context [B, N, D], vector [B, V]) -> [B, C, h, w]: a torch module or an engine."""
Decoder = Callable[[Tensor], Tensor]
"""latents [B, C, h, w] -> pictures [B, 3, H, W] in about [-1, 1]."""


@dataclass(frozen=True)
class TextToImageModel:
    """Everything that one model needs to make pictures. The networks may be engines."""

    spec: ModelSpec
    schedule: Schedule
    conditioner: SDXLConditioner
    denoisers: Mapping[str, Denoiser]
    """By the name that a plan's lines use."""
    decoder: Decoder
    latent_channels: int
    downscale: int


@dataclass
class Row:
    """One picture in flight. Everything that its pixels depend on is in here; nothing comes from the batch."""

    plan: Plan
    lanes: tuple[Condition, ...]
    """Negative and positive, or positive alone, as the plan's lane weights."""
    state: Tensor
    """[K + 1, C, h, w] fp32: the latent and the solver's history."""
    generator: torch.Generator
    line: int = 0
    """The next line of the plan."""

    @property
    def finished(self) -> bool:
        """Whether ``state[0]`` is the clean latent."""
        return self.line == len(self.plan.lines)


def load(folder: Path) -> TextToImageModel:
    """A model from a diffusers SDXL folder, with torch networks in fp32.

    Raises:
        ValueError: the folder is not one, or its weights do not fit its configs.
    """
    return load_with(folder, {"unet": load_unet(folder)}, VAEDecoder(load_vae(folder)))


def load_with(folder: Path, denoisers: Mapping[str, Denoiser], decoder: Decoder) -> TextToImageModel:
    """As :func:`load`, with the given networks, which may be engines, in place of the folder's own."""
    spec = ModelSpec.read(folder)
    unet, vae = read_unet_spec(folder), read_vae_spec(folder)
    return TextToImageModel(
        spec=spec,
        schedule=Schedule.from_config(spec.scheduler_config),
        conditioner=SDXLConditioner.load(folder, unet, spec.zeros_for_empty_prompt),
        denoisers=denoisers,
        decoder=decoder,
        latent_channels=vae.latent_channels,
        downscale=vae.downscale,
    )


def prepare(
    model: TextToImageModel, prompt: str, negative_prompt: str, guidance: float, width: int, height: int
) -> tuple[Condition, ...]:
    """The conditions of a row's lanes."""
    positive = model.conditioner.encode(prompt, width, height)
    if guidance <= 1.0:
        return (positive,)
    return model.conditioner.encode_negative(negative_prompt, width, height), positive


def start_row(
    model: TextToImageModel, plan: Plan, lanes: tuple[Condition, ...], seed: int, width: int, height: int
) -> Row:
    """A row at line 0: its latent is noise from its own generator, the first draw of the row."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.latent_channels, height // model.downscale, width // model.downscale)
    state = torch.zeros(plan.history + 1, *shape[1:])
    state[0] = torch.randn(shape, generator=generator)[0] * plan.init_scale
    return Row(plan, lanes, state, generator)


@torch.inference_mode()
def advance(denoiser: Denoiser, rows: Sequence[Row], padded_lanes: int = 0) -> None:
    """Take every row one line further, all in one evaluation.

    Args:
        denoiser: the network that the rows' current lines name.
        rows: unfinished rows of one latent shape and context length.
        padded_lanes: run at least this many lanes, the missing ones being copies: with a back end whose bytes depend
            on the batch size, a constant size makes a row's bytes its own.
    """
    lines = [row.plan.lines[row.line] for row in rows]
    outputs = _evaluate(denoiser, rows, lines, padded_lanes)
    states, histories = _padded_states(rows)
    noise = torch.stack([_draw(row, line) for row, line in zip(rows, lines, strict=True)])
    stepped = solver_step(states, *_padded_outputs(outputs, lines), *_coefficients(lines, histories), noise)
    for row, state in zip(rows, stepped, strict=True):
        row.state = state[: row.plan.history + 1].clone()
        row.line += 1


@torch.inference_mode()
def decode(decoder: Decoder, rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Finished rows -> uint8 [B, H, W, 3]."""
    pictures = decoder(torch.stack([row.state[0] for row in rows]))
    levels = (pictures.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0
    array: NDArray[np.uint8] = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return array


def generate(model: TextToImageModel, prompt: str, seed: int, steps: int | None = None) -> NDArray[np.uint8]:
    """One picture with the model's own defaults: uint8 [H, W, 3]. The ten lines that show how the stages meet."""
    width, height = model.spec.sizes[0]
    guidance = model.spec.guidance
    plan = make_plan(model.schedule, model.spec.solver, steps or model.spec.steps, guidance)
    row = start_row(model, plan, prepare(model, prompt, "", guidance, width, height), seed, width, height)
    while not row.finished:
        advance(model.denoisers[plan.lines[row.line].network], [row])
    picture: NDArray[np.uint8] = decode(model.decoder, [row])[0]
    return picture


def _evaluate(denoiser: Denoiser, rows: Sequence[Row], lines: Sequence[Line], padded_lanes: int) -> list[Tensor]:
    """Network outputs of each row, [L, C, h, w] with L the row's own lanes."""
    counts = [len(line.lanes) for line in lines]
    spread = [i for i, count in enumerate(counts) for _ in range(count)]
    spread += spread[:1] * (padded_lanes - len(spread))
    conditions = [row.lanes[k] for row, count in zip(rows, counts, strict=True) for k in range(count)]
    conditions += conditions[:1] * (padded_lanes - len(conditions))
    x = torch.stack([row.state[0] * line.c_in for row, line in zip(rows, lines, strict=True)])
    outputs = denoiser(
        x[spread],
        torch.tensor([lines[i].c_noise for i in spread], dtype=torch.float32),
        torch.stack([condition.context for condition in conditions]),
        torch.stack([condition.vector for condition in conditions]),
    )
    return list(outputs[: sum(counts)].split(counts))


def _padded_states(rows: Sequence[Row]) -> tuple[Tensor, int]:
    """States as one tensor [B, K + 1, C, h, w], shorter histories padded with zeros; and K."""
    history = max(row.plan.history for row in rows)
    states = rows[0].state.new_zeros(len(rows), history + 1, *rows[0].state.shape[1:])
    for i, row in enumerate(rows):
        states[i, : row.plan.history + 1] = row.state
    return states, history


def _padded_outputs(outputs: Sequence[Tensor], lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """Outputs [B, L, C, h, w] and lane weights [B, L], rows of fewer lanes padded with zeros."""
    lanes = max(len(output) for output in outputs)
    padded = outputs[0].new_zeros(len(outputs), lanes, *outputs[0].shape[1:])
    weights = torch.zeros(len(outputs), lanes)
    for i, (output, line) in enumerate(zip(outputs, lines, strict=True)):
        padded[i, : len(output)] = output
        weights[i, : len(output)] = torch.tensor(line.lanes)
    return padded, weights


def _coefficients(lines: Sequence[Line], history: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """c_skip [B], c_out [B], A [B, K+1, K+1], b [B, K+1] and s [B], shorter histories padded with zeros."""
    a, b = torch.zeros(len(lines), history + 1, history + 1), torch.zeros(len(lines), history + 1)
    for i, line in enumerate(lines):
        k = len(line.b)
        a[i, :k, :k], b[i, :k] = torch.tensor(line.a), torch.tensor(line.b)
    c_skip, c_out = torch.tensor([line.c_skip for line in lines]), torch.tensor([line.c_out for line in lines])
    return c_skip, c_out, a, b, torch.tensor([line.s for line in lines])


def _draw(row: Row, line: Line) -> Tensor:
    """The line's noise [C, h, w], from the row's generator; zeros when the line draws none."""
    shape = row.state.shape[1:]
    return torch.randn((1, *shape), generator=row.generator)[0] if line.draw else torch.zeros(shape)
