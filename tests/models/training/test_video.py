"""Training of the video model: the target is what the sampler undoes, the loss falls, a cut run equals an uncut one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.conditioners.video import ClipVision, SVDConditioner
from models.guidance import Guidance
from models.plan import make_plan
from models.schedule import Schedule
from models.spec.unet import UNetSpec
from models.training import video
from models.training.clips import Clips
from models.training.loop import Recipe
from models.training.video import (
    COLOUR_MEAN,
    COLOUR_STD,
    SCHEDULER_CONFIG,
    UNET_CONFIG,
    Stage,
    VideoNetworks,
    average,
    network_input,
    new_tower,
    shift_mixers,
    train_video,
    vector,
    vision_input,
)
from models.unet import UNet
from models.video_blocks import Mixer

TINY = {
    **UNET_CONFIG,
    "in_channels": 4,
    "out_channels": 2,
    "block_out_channels": [32, 32],
    "num_attention_heads": [1, 1],
    "num_frames": 3,
}
RECIPE = Recipe(steps=8, peak_lr=3e-3, final_lr=1e-3, warmup=2, ema=0.5, save_every_s=-1.0)
STAGE = Stage(RECIPE, (1.0, 1.6), 0.5)


def clips(count: int = 4) -> Clips:
    """Two kinds of still clips, told apart by their picture."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0, -1.0]).repeat(count // 2)
    latents = sign[:, None, None, None, None] * torch.ones(count, 3, 2, 4, 4)
    pictures = (127 + 100 * sign).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    numbers = torch.tensor([7.0, 0.0, 0.02]).expand(count, -1)
    conditions = latents[:, 0] + 0.01 * torch.randn(latents[:, 0].shape, generator=generator)
    return Clips(latents.half(), conditions.half(), pictures.contiguous(), numbers)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> VideoNetworks:
    monkeypatch.setattr(video, "VISION_CONFIG", {**video.VISION_CONFIG, "hidden_size": 16, "intermediate_size": 16})
    tower = new_tower(0)
    return VideoNetworks(UNet(UNetSpec.from_config(TINY)), tower)


def test_network_input_and_target_are_the_plans() -> None:
    plan = make_plan(Schedule.from_config(SCHEDULER_CONFIG), "euler", 5, Guidance())
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(1, 3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for line in plan.lines:
        sigma = torch.tensor([torch.exp(torch.tensor(line.c_noise * 4.0, dtype=torch.float64))])
        noisy = latents + sigma * noise
        given = network_input(noisy, sigma, torch.zeros(1, 2, 4, 4, dtype=torch.float64))
        assert torch.allclose(given[:, :, :2], noisy * line.c_in, rtol=1e-5)
        target = (noise - sigma * latents) / (sigma.square() + 1.0).sqrt()
        assert torch.allclose(line.c_skip * noisy + line.c_out * target, latents, atol=2e-3)
        if sigma > 0.5:
            assert not torch.allclose(line.c_skip * noisy - line.c_out * target, latents, atol=0.1)


def test_the_average_is_in_the_middle(networks: VideoNetworks) -> None:
    others = [copy.deepcopy(networks) for _ in range(2)]
    for number, other in enumerate(others, 1):
        for weight in other.parameters():
            weight.data.add_(0.3 * number)
    before = [weight.detach().clone() for weight in networks.parameters()]
    mean = list(average([networks, *others]).parameters())
    assert all(torch.allclose(weight, was + 0.3, atol=1e-6) for weight, was in zip(mean, before, strict=True))


def test_shifted_mixers_take_more_of_each_frame(networks: VideoNetworks) -> None:
    unet = copy.deepcopy(networks.unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    shift_mixers(unet, 0.25)
    moved = {name for name, weight in unet.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.endswith("time_mixer.mix_factor")} and moved
    assert all(torch.allclose(unet.state_dict()[name], before[name] + 0.25) for name in moved)
    mixer, (frame, clip) = Mixer(), torch.randn(2, 3)
    blended = mixer(frame, clip)
    mixer.mix_factor.data.add_(0.25)
    assert torch.all((mixer(frame, clip) - frame).abs() < (blended - frame).abs())


def test_conditions_are_those_of_serving(networks: VideoNetworks) -> None:
    picture = clips().pictures[0]
    conditioner = SVDConditioner(ClipVision(networks.tower.eval()), COLOUR_MEAN, COLOUR_STD, 16)
    served = conditioner.encode(picture, fps=7, motion_bucket_id=90, noise_aug_strength=0.1)
    with torch.no_grad():
        token = networks.tower(vision_input(picture[None])).image_embeds
    assert torch.allclose(served.context, token, atol=1e-5)
    assert torch.allclose(served.vector, vector(torch.tensor([[7.0, 90.0, 0.1]]), 16)[0])
    assert not torch.allclose(served.vector, vector(torch.tensor([[8.0, 90.0, 0.1]]), 16)[0])


def test_the_loss_falls_and_a_cut_run_equals_the_uncut_one(networks: VideoNetworks, tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in networks.state_dict().items()}
    losses: list[float] = []

    def run(checkpoint: Path, steps: int) -> dict[str, torch.Tensor]:
        averaged = train_video(
            clips(), networks.requires_grad_(True), checkpoint, replace(STAGE, recipe=replace(RECIPE, steps=steps)), 4
        )
        return {name: value.clone() for name, value in averaged.state_dict().items()}

    real = video.train

    def watched(network, loss, recipe, checkpoint):  # type: ignore[no-untyped-def]
        def counted(step: int, generator: torch.Generator) -> torch.Tensor:
            value = loss(step, generator)
            losses.append(float(value.detach()))
            return value

        return real(network, counted, recipe, checkpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "train", watched)
        uncut = run(tmp_path / "uncut.pt", 8)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    state = torch.load(tmp_path / "uncut.pt", weights_only=True)
    assert any(not torch.equal(state["network"][name], value) for name, value in uncut.items())  # it is the average

    networks.load_state_dict(start)

    class Cut(Exception):
        """Stands in for a kill."""

    def killed(network, loss, recipe, checkpoint):  # type: ignore[no-untyped-def]
        def until(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == 5:
                raise Cut
            return loss(step, generator)

        return real(network, until, recipe, checkpoint)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(video, "train", killed)
        run(tmp_path / "cut.pt", 8)
    networks.load_state_dict(start)
    resumed = run(tmp_path / "cut.pt", 8)
    assert all(torch.equal(resumed[name], value) for name, value in uncut.items())
