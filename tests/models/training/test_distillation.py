"""Adversarial distillation on networks of toy size: who learns from what, and that the student learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.conditioners.sdxl import size_features
from models.schedule import Schedule
from models.spec.unet import UNetSpec
from models.training import distillation
from models.training.diffusion import SCHEDULER_CONFIG, UNET_CONFIG
from models.training.distillation import (
    STUDENT_TIMES,
    Course,
    Discriminator,
    Distillation,
    Teacher,
    clean,
    distil,
    noised,
)
from models.training.loop import Recipe
from models.unet import UNet
from tests.support.tiny_xl import randomise

CONFIG = {
    **UNET_CONFIG,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8, 16],
    "attention_head_dim": [1, 2],
    "cross_attention_dim": 8,
    "addition_time_embed_dim": 2,
    "projection_class_embeddings_input_dim": 16,
    "norm_num_groups": 2,
}
TEXT = 4
ABAR = torch.tensor(Schedule.from_config(SCHEDULER_CONFIG).alphas_cumprod)


class Words:
    """A conditioner of two captions, each a constant vector."""

    def tokenize(self, captions: list[str], _tower: int) -> Tensor:
        return torch.tensor([[float(caption == "dark")] for caption in captions])

    def encode_tokens(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        return ids[0][:, :, None].expand(-1, 3, 8) * 2.0 - 1.0, ids[1].expand(-1, TEXT) * 2.0 - 1.0


class TwoPictures:
    """Half of the examples are dark, half are bright, and their captions say so."""

    size = 16

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        dark = torch.rand(count, generator=generator) < 0.5
        noise = 0.1 * torch.randn(count, 2, 4, 4, generator=generator)
        level = torch.where(dark, -1.0, 1.0)[:, None, None, None]
        return noise + level, ["dark" if d else "bright" for d in dark.tolist()]


@pytest.fixture
def unet() -> UNet:
    return randomise(UNet(UNetSpec.from_config(CONFIG)), 1)  # type: ignore[return-value]


@pytest.fixture
def networks(unet: UNet) -> Distillation:
    torch.manual_seed(0)
    return Distillation(copy.deepcopy(unet).requires_grad_(True), TEXT)


def features(teacher: Teacher, latents: Tensor) -> list[Tensor]:
    times = torch.full((len(latents),), 200)
    sizes = size_features(16, 16, 2).expand(len(latents), -1)
    text = (torch.zeros(len(latents), 3, 8), torch.cat([torch.zeros(len(latents), TEXT), sizes], 1))
    return teacher.features(latents, times, torch.zeros_like(latents), text)


def test_noising_and_estimating_are_inverse() -> None:
    x0, noise = torch.randn(2, 5, 2, 4, 4)
    times = torch.tensor([0, 249, 499, 749, 999])
    alpha, sigma = ABAR[times].sqrt()[:, None, None, None], (1 - ABAR[times]).sqrt()[:, None, None, None]
    torch.testing.assert_close(clean(noised(x0, times, noise, ABAR), times, alpha * noise - sigma * x0, ABAR), x0)


def test_the_student_stands_where_trailing_steps_do() -> None:
    from models.plan import Guidance, make_plan

    plan = make_plan(Schedule.from_config(SCHEDULER_CONFIG), "ddim", 4, Guidance())
    assert [round(line.c_noise) for line in plan.lines] == list(STUDENT_TIMES)


def test_each_side_of_the_game_moves_itself_only(unet: UNet, networks: Distillation) -> None:
    teacher = Teacher(unet, ABAR)
    latents = torch.randn(3, 2, 4, 4)
    fake = latents.clone().requires_grad_()
    text = torch.randn(3, TEXT)
    real_features, fake_features = features(teacher, latents), features(teacher, fake)
    assert len(real_features) == 3  # two levels and the middle
    sum(distillation._adversarial(networks.discriminator, real_features, fake_features, text)).backward()
    reached = torch.cat([p.grad.flatten() for p in networks.discriminator.parameters()])  # type: ignore[union-attr]
    assert fake.grad is not None and float(fake.grad.abs().sum()) > 0
    assert all(p.grad is None for p in unet.parameters())
    # The discriminator is moved by the hinge alone: the same with the student's side left out.
    networks.discriminator.zero_grad()
    detached = [feature.detach() for feature in fake_features]
    sum(distillation._adversarial(networks.discriminator, real_features, detached, text)).backward()
    again = torch.cat([p.grad.flatten() for p in networks.discriminator.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(reached, again)


def test_the_teacher_is_asked_with_guidance(unet: UNet) -> None:
    teacher, latents = Teacher(unet, ABAR), torch.randn(2, 2, 4, 4)
    times, noise = torch.tensor([300, 700]), torch.randn(2, 2, 4, 4)
    text = (torch.randn(2, 3, 8), torch.randn(2, 16))
    guided = teacher.estimate(latents, times, noise, text, 3.0)
    noisy = noised(latents, times, noise, ABAR)
    blank = (torch.zeros(2, 3, 8), torch.cat([torch.zeros(2, TEXT), text[1][:, TEXT:]], 1))
    positive, negative = (clean(noisy, times, unet(noisy, times.float(), *lane), ABAR) for lane in (text, blank))
    torch.testing.assert_close(guided, negative + 3.0 * (positive - negative), rtol=1e-4, atol=1e-4)
    assert float((teacher.estimate(latents, times, noise, text, 1.0) - guided).abs().max()) > 0.01


def test_the_discriminator_reads_the_text() -> None:
    torch.manual_seed(0)
    judge = Discriminator(UNet(UNetSpec.from_config(CONFIG)), TEXT)
    maps = [torch.randn(2, width, 2, 2) for width in (8, 16, 16)]
    assert judge(maps, torch.zeros(2, TEXT)).shape == (2, 12)
    assert not torch.equal(judge(maps, torch.zeros(2, TEXT)), judge(maps, torch.ones(2, TEXT)))


class PerfectTeacher(UNet):
    """Knows the two pictures by heart: whatever the noise, x0 is what the caption says."""

    def forward(self, x: Tensor, c_noise: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        super().forward(x, c_noise, context, vector)  # so that its features exist
        alpha, sigma = distillation.levels(c_noise.long(), ABAR)
        said = context.mean((1, 2))[:, None, None, None]
        # v of x0 = -said (dark is +1 in the context and -1 in the picture).
        eps = (x - alpha * -said) / sigma.clamp_min(1e-3)
        return alpha * eps - sigma * -said


def test_the_student_learns_to_draw_in_one_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = PerfectTeacher(UNetSpec.from_config(CONFIG))
    networks = Distillation(UNet(UNetSpec.from_config(CONFIG)), TEXT)
    words: Any = Words()

    def error(student: UNet) -> float:
        noise = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(9))
        times = torch.full((16,), 999)
        captions = ["dark", "bright"] * 8
        context, pooled = words.encode_tokens([words.tokenize(captions, 0)] * 2)
        vector = torch.cat([pooled, size_features(16, 16, 2).expand(16, -1)], 1)
        with torch.no_grad():
            made = clean(noise, times, student(noise, times.float(), context, vector), ABAR)
        wanted = torch.tensor([-1.0, 1.0] * 8)[:, None, None, None]
        return float((made - wanted).square().mean())

    before = error(networks.student)
    course = Course(Recipe(steps=60, peak_lr=8e-3, final_lr=1e-3, warmup=5, ema=0.9), 1.0, 0.05)
    made = distil(TwoPictures(), teacher, words, networks, tmp_path / "turbo.pt", course, 8)  # type: ignore[arg-type]
    assert error(made.student) < 0.3 * before


def test_a_resumed_run_equals_the_uncut_one(tmp_path: Path) -> None:
    words: Any = Words()

    def run(path: Path, *steps: int) -> UNet:
        for count in steps:
            torch.manual_seed(0)
            teacher = UNet(UNetSpec.from_config(CONFIG))
            networks = Distillation(copy.deepcopy(teacher), TEXT)
            course = Course(Recipe(steps=count, peak_lr=1e-3, final_lr=1e-3, warmup=1, decay=0.0), 3.0, 0.05)
            made = distil(TwoPictures(), teacher, words, networks, path, course, 4)  # type: ignore[arg-type]
        return made.student

    uncut, resumed, shorter = run(tmp_path / "a.pt", 4), run(tmp_path / "b.pt", 2, 4), run(tmp_path / "c.pt", 2)
    pairs = list(zip(uncut.parameters(), resumed.parameters(), shorter.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
