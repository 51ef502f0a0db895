"""A judge of generated pictures: a small classifier that has never seen the styles it judges.

It learns the concepts from five styles and is scored on real drawings of the other three, which are the ones that the
shipped model draws. Concepts that it cannot name in real art of those styles are no use for judging and leave the list.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES

TRAIN_STYLES = ("flat", "blob", "classic", "fx", "gradient")
BATCH = 64
LEARNING_RATE = 3e-3
VIEWS = (
    (1.0, 0, 0),
    (1.0, 3, 3),
    (1.0, -3, -3),
    (0.85, 0, 0),
    (0.85, 4, -4),
    (1.1, 0, 0),
)  # scale, shift x and y in pixels


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut: [B, in, H, W] to [B, out, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(hidden)) + self.shortcut(x))


class Network(nn.Module):
    """Pictures [B, 3, H, W] in -1 to 1, to logits [B, classes]."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, 2, 2)
        self.blocks = nn.Sequential(
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 4 * width, 2),
            Residual(4 * width, 8 * width, 2),
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem(x))).mean((2, 3))
        logits: Tensor = self.head(F.dropout(features, 0.2, self.training))
        return logits


@dataclass(frozen=True)
class Judge:
    """A trained classifier; slugs[i] is the concept of class i."""

    network: Network
    slugs: tuple[str, ...]

    @torch.inference_mode()
    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The class index of each picture: uint8 [N, 64, 64, 3] to int64 [N]. Raises ValueError on another form."""
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise ValueError(f"pictures must be uint8 [N, H, W, 3], got {pictures.dtype} {list(pictures.shape)}")
        self.network.eval()
        x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        # Both mirror images, because a drawing faces left as often as right.
        logits = [self.network(part) + self.network(part.flip(3)) for part in torch.split(x, 256)]
        found: NDArray[np.int64] = torch.cat(logits).argmax(1).numpy()
        return found

    def save(self, path: Path) -> None:
        """Write the weights, and the slugs as metadata, as one safetensors file."""
        state = {key: value.contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, path, metadata={"slugs": json.dumps(self.slugs)})

    @staticmethod
    def load(path: Path) -> Judge:
        """Read what `save` wrote. Raises ValueError when the file holds no judge."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "slugs" not in metadata:
                raise ValueError(f"{path} is not a judge: it names no concepts")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
        slugs = tuple(json.loads(metadata["slugs"]))
        network = Network(len(slugs), width=state["stem.bias"].numel())
        network.load_state_dict(state)
        return Judge(network.eval(), slugs)


def restrict(judge: Judge, slugs: Sequence[str]) -> Judge:
    """The same judge over these classes alone, so that it must name one of them."""
    rows = [judge.slugs.index(slug) for slug in slugs]
    network, head = copy.deepcopy(judge.network), judge.network.head
    network.head = nn.Linear(head.in_features, len(rows))
    with torch.no_grad():
        network.head.weight.copy_(head.weight[rows])
        network.head.bias.copy_(head.bias[rows])
    return Judge(network.eval(), tuple(slugs))


def train_judge(drawings: Drawings, slugs: Sequence[str], steps: int, seed: int = 0, width: int = 32) -> Judge:
    """Train a judge of these concepts on the drawings in TRAIN_STYLES; the same seed gives the same judge.

    steps counts batches of 64. Raises ValueError when a concept has no drawing in those styles.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = labelled(drawings.select(slugs, [s for s in TRAIN_STYLES if s in drawings.styles]), slugs)
    missing = sorted({slug for i, slug in enumerate(slugs) if not (labels == i).any()})
    if missing:
        raise ValueError(f"no drawing to learn {missing} from")
    network = Network(len(slugs), width).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPU
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    for _ in track(range(steps), "judge: train"):
        chosen = torch.randint(len(slugs), (BATCH,), generator=generator)
        rows = one_of_each(labels, chosen, generator)
        pictures = augment(pixels[rows], generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(pictures.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), chosen, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Judge(network.eval(), tuple(slugs))


def real_accuracy(judge: Judge, drawings: Drawings, styles: Sequence[str] = CAPTION_STYLES) -> dict[str, float]:
    """Share of right answers per concept, over the views of each real drawing in styles, on white."""
    pixels, labels = labelled(drawings.select(judge.slugs, styles), judge.slugs)
    right = torch.zeros(len(labels))
    for view in VIEWS:
        pictures = (on_white(affine(pixels, *_fixed_view(len(pixels), *view))) * 255).round().to(torch.uint8)
        found = judge.predict(pictures.permute(0, 2, 3, 1).numpy())
        right += torch.from_numpy(found) == labels
    share = right / len(VIEWS)
    return {slug: float(share[labels == i].mean()) for i, slug in enumerate(judge.slugs)}


def kept_concepts(accuracy: dict[str, float], least: float = 0.9) -> tuple[str, ...]:
    """The slugs whose real accuracy is at least `least`, in their order."""
    return tuple(slug for slug, share in accuracy.items() if share >= least)


def labelled(drawings: Drawings, slugs: Sequence[str]) -> tuple[Tensor, Tensor]:
    """All drawings as float [N, 4, H, W] in 0 to 1, premultiplied, and their place in slugs as int64 [N]."""
    place = {drawings.slugs.index(slug): i for i, slug in enumerate(slugs)}
    pixels = torch.from_numpy(drawings.pixels.copy()).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.tensor([place[int(concept)] for concept in drawings.concept])


def one_of_each(labels: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """A random row for each chosen class, so that a concept drawn in few styles is seen as often as the others."""
    lottery = torch.rand(len(chosen), len(labels), generator=generator)
    return lottery.masked_fill(labels[None] != chosen[:, None], -1).argmax(1)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random views of premultiplied [B, 4, H, W] on random backgrounds: [B, 3, H, W] in -1 to 1, hue kept."""
    count = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape or (count, 1, 1, 1), generator=generator)

    size = uniform(0.7, 1.2, count)
    stretch = uniform(0.85, 1.18, count)
    flip = uniform(-1, 1, count).sign()
    angle = uniform(-0.3, 0.3, count)  # radians
    shear = uniform(-0.2, 0.2, count)
    shift = uniform(-0.2, 0.2, count, 2)  # of half the picture
    x = affine(pixels, flip * stretch * size, size, angle, shear, shift)
    colour, alpha = x[:, :3], x[:, 3:]
    # The jitter mixes each colour with its grey, with black and with white, which leaves the hue as it is.
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * uniform(0.5, 1.4)
    colour = colour * uniform(0.7, 1.15)
    light = uniform(0, 0.25)
    colour = (colour * (1 - light) + alpha * light).clamp(0, 1)
    plain = (uniform(0, 1) < 0.5).float()
    background = plain + (1 - plain) * uniform(0, 1, count, 3, 1, 1)
    x = colour + (1 - alpha) * background
    x = soften(x, int(torch.randint(20, 65, (), generator=generator)))
    x = x + uniform(0, 0.06) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1) * 2 - 1


def soften(pictures: Tensor, side: int) -> Tensor:
    """Every other picture of [B, C, H, W] blurred by a trip through side x side pixels, as generated ones are soft."""
    small = F.interpolate(pictures[::2], (side, side), mode="bilinear", antialias=True)
    result = pictures.clone()
    result[::2] = F.interpolate(small, pictures.shape[2:], mode="bilinear")
    return result


def affine(pixels: Tensor, scale_x: Tensor, scale_y: Tensor, angle: Tensor, shear: Tensor, shift: Tensor) -> Tensor:
    """Scale, shear, turn (radians) and shift (in halves of the picture) [B, C, H, W]; what comes in is transparent."""
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    zero, one = torch.zeros_like(shear), torch.ones_like(shear)
    lean = torch.stack([torch.stack([one, shear], 1), torch.stack([zero, one], 1)], 1)
    scale = torch.diag_embed(torch.stack([1 / scale_x, 1 / scale_y], 1))
    theta = torch.cat([scale @ lean @ turn, -shift[:, :, None]], 2)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def on_white(pixels: Tensor) -> Tensor:
    """Premultiplied [B, 4, H, W] on white: [B, 3, H, W] in 0 to 1."""
    return (pixels[:, :3] + 1 - pixels[:, 3:]).clamp(0, 1)


def _fixed_view(count: int, scale: float, x: float, y: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of `affine` for one entry of VIEWS, for 64 x 64 pixels."""
    same, none = torch.full((count,), scale), torch.zeros(count)
    return same, same, none, none, torch.tensor([[x / 32, y / 32]]).expand(count, 2)
