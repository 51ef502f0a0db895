"""Adversarial diffusion distillation: a student that draws in one to four steps (Sauer et al. 2023, ADD).

Two losses train the student: its pictures must be what the frozen teacher would make of them after renewed noise (score
distillation, equation 4 of the paper), and small heads on the teacher's own features must not tell them from real ones
(adversarial, equation 2; features of the diffusion teacher in latent space as in Sauer et al. 2024, LADD). The teacher
is asked with guidance, so the student needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.conditioners.sdxl import SDXLConditioner, size_features
from models.schedule import Schedule
from models.training.diffusion import SCHEDULER_CONFIG, Examples
from models.training.loop import Recipe, train
from models.unet import UNet

STUDENT_TIMES = (999, 749, 499, 249)
"""Where the student stands before each of four trailing steps; one step begins at the first."""
GRADIENT_PENALTY = 1e-5
HEAD_WIDTH = 64
BATCH = 32


@dataclass(frozen=True)
class Course:
    """One part of the training."""

    recipe: Recipe
    guidance: float
    """What the teacher is asked with. Guidance makes things plain, and burns them when it is taken again and again."""
    adversarial_weight: float


COURSES = {
    "learn": Course(Recipe(steps=1_500, peak_lr=3e-4, final_lr=1e-5, warmup=50, decay=0.5, ema=0.995), 3.0, 0.05),
    "settle": Course(Recipe(steps=400, peak_lr=3e-4, final_lr=1e-5, warmup=20, decay=0.8, ema=0.98, seed=1), 1.0, 0.01),
}
"""First the things, with guidance; then colours and whites as they are, without it."""


def described() -> dict[str, dict[str, Any]]:
    """The courses and their constants, for a model card."""
    shared = {"student_times": STUDENT_TIMES, "gradient_penalty": GRADIENT_PENALTY, "batch": BATCH}
    return {
        f"distillation, {name}": asdict(course.recipe)
        | {"teacher_guidance": course.guidance, "adversarial_weight": course.adversarial_weight}
        | shared
        for name, course in COURSES.items()
    }


class Head(nn.Module):
    """Real or not, position by position, from one feature map and the pooled text (projection discriminator)."""

    def __init__(self, channels: int, text_dim: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, HEAD_WIDTH, 1)
        self.norm = nn.GroupNorm(1, HEAD_WIDTH)
        self.leave = nn.Conv2d(HEAD_WIDTH, 1, 1)
        self.text = nn.Linear(text_dim, HEAD_WIDTH)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """features [B, C, h, w], text [B, P] -> logits [B, h, w]."""
        hidden = F.silu(self.norm(self.enter(features)))
        agreement = (hidden * self.text(text)[:, :, None, None]).sum(1) / HEAD_WIDTH**0.5
        return self.leave(hidden)[:, 0] + agreement


class Discriminator(nn.Module):
    """One head for every level of the teacher's way down, and one for its middle."""

    def __init__(self, unet: UNet, text_dim: int) -> None:
        super().__init__()
        widths = (*unet.spec.block_out_channels, unet.spec.block_out_channels[-1])
        self.heads = nn.ModuleList([Head(width, text_dim) for width in widths])

    def forward(self, features: Iterable[Tensor], text: Tensor) -> Tensor:
        """Feature maps of B pictures and their pooled texts [B, P] -> logits [B, N] of all heads and positions."""
        logits = [head(feature, text).flatten(1) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1)


class Distillation(nn.Module):
    """All that is trained: the student, which begins as the teacher, and the discriminator."""

    def __init__(self, student: UNet, text_dim: int) -> None:
        super().__init__()
        self.student = student
        self.discriminator = Discriminator(student, text_dim)


class Teacher:
    """The frozen network: its estimates, and its features."""

    def __init__(self, unet: UNet, abar: Tensor) -> None:
        self.unet = unet.requires_grad_(False).eval()
        self.abar = abar

    def estimate(
        self, latents: Tensor, times: Tensor, noise: Tensor, text: tuple[Tensor, Tensor], guidance: float
    ) -> Tensor:
        """The clean latent that the guided teacher sees in noised ``latents`` [B, C, h, w]."""
        noisy = noised(latents, times, noise, self.abar)
        context, vector = text
        # The unconditional lane: no text, the same sizes.
        blank = torch.cat([torch.zeros_like(vector[:, : -self.sizes]), vector[:, -self.sizes :]], dim=1)
        contexts = torch.cat([context, torch.zeros_like(context)])
        v = self.unet(noisy.repeat(2, 1, 1, 1), times.float().repeat(2), contexts, torch.cat([vector, blank]))
        positive, negative = clean(noisy.repeat(2, 1, 1, 1), times.repeat(2), v.float(), self.abar).chunk(2)
        return negative + guidance * (positive - negative)

    def features(self, latents: Tensor, times: Tensor, noise: Tensor, text: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Outputs of every level of the way down and of the middle for noised ``latents``."""
        with recorded([*self.unet.down_blocks, self.unet.mid_block]) as outputs:
            self.unet(noised(latents, times, noise, self.abar), times.float(), *text)
        return [output.float() for output in outputs]

    @property
    def sizes(self) -> int:
        """How many numbers at the end of the vector tell sizes."""
        return 6 * self.unet.spec.time_id_dim


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what the modules return, in the order in which they run."""
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for module in modules
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def noised(latents: Tensor, times: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """alpha x0 + sigma eps at training timesteps [B]."""
    alpha, sigma = levels(times, abar)
    return (alpha * latents + sigma * noise).contiguous(memory_format=torch.channels_last)


def clean(noisy: Tensor, times: Tensor, v: Tensor, abar: Tensor) -> Tensor:
    """x0 = alpha x - sigma v (Salimans and Ho 2022, section 4)."""
    alpha, sigma = levels(times, abar)
    return alpha * noisy - sigma * v


def levels(times: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma [B, 1, 1, 1]."""
    level = abar[times][:, None, None, None]
    return level.sqrt(), (1.0 - level).sqrt()


def distil(
    examples: Examples,
    teacher_unet: UNet,
    conditioner: SDXLConditioner,
    networks: Distillation,
    checkpoint: Path,
    course: Course,
    batch: int = BATCH,
) -> Distillation:
    """Train, or resume, one course and return the averages."""
    abar = torch.tensor(Schedule.from_config(SCHEDULER_CONFIG).alphas_cumprod)
    teacher = Teacher(teacher_unet, abar)
    for unet in (teacher_unet, networks.student):
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sizes = size_features(examples.size, examples.size, teacher_unet.spec.time_id_dim).expand(batch, -1)
    places = torch.tensor(STUDENT_TIMES)

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        real, captions = examples.draw(batch, generator)
        noises = [torch.randn(real.shape, generator=generator) for _ in range(3)]
        student_times = places[torch.randint(len(places), (batch,), generator=generator)]
        teacher_times, judge_times = (torch.randint(len(abar), (batch,), generator=generator) for _ in range(2))
        with torch.autocast(real.device.type, torch.bfloat16):
            with torch.no_grad():
                ids = [conditioner.tokenize(captions, tower).to(real.device) for tower in (0, 1)]
                context, pooled = conditioner.encode_tokens(ids)
            text = (context, torch.cat([pooled, sizes], dim=1))
            noisy = noised(real, student_times, noises[0], abar)
            fake = clean(noisy, student_times, networks.student(noisy, student_times.float(), *text).float(), abar)
            with torch.no_grad():
                target = teacher.estimate(fake, teacher_times, noises[1], text, course.guidance)
            of_fake = teacher.features(fake, judge_times, noises[2], text)
            with torch.no_grad():
                of_real = teacher.features(real, judge_times, noises[2], text)
        distillation = (fake - target).square().mean()
        student, discriminator = _adversarial(networks.discriminator, of_real, of_fake, pooled.float())
        return distillation + course.adversarial_weight * student + discriminator

    return train(networks, loss, course.recipe, checkpoint)  # type: ignore[return-value]


def _adversarial(
    discriminator: Discriminator, real: list[Tensor], fake: list[Tensor], text: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses of both sides of the game: the student's reaches the student alone, the discriminator's the
    discriminator alone."""
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    student = -functional_call(discriminator, frozen, (fake, text)).mean()
    watched = [feature.detach().requires_grad_() for feature in real]
    verdicts = discriminator(watched, text)
    hinge = F.relu(1.0 - verdicts).mean() + F.relu(1.0 + discriminator([f.detach() for f in fake], text)).mean()
    slopes = torch.autograd.grad(verdicts.sum(), watched, create_graph=True)
    penalty = sum((slope.square().flatten(1).sum(1).mean() for slope in slopes), torch.zeros(()))
    return student, hinge + 0.5 * GRADIENT_PENALTY * penalty
