"""Whole pictures against ``StableDiffusionXLPipeline`` on one random model folder: same prompt, seed and settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.families.row import Row, advance
from models.families.text_to_image import TextToImageModel, decode, generate, load, prepare, start_row
from models.guidance import Guidance
from models.plan import make_plan
from models.schedule import Schedule
from models.tiling import tiled_decode, tiled_encode
from models.weights import WEIGHTS, load_unet, load_vae

WIDTH, HEIGHT = 40, 24
SEEDS = (11, 12)
PROMPT, OTHER_PROMPT, NEGATIVE = "a red cat", "a dog", "a red dog"
CLASSES = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
}
STEPS = {"euler": 3, "euler-ancestral": 6, "ddim": 4, "dpm++2m": 4}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "eps-leading": {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
    "zero-snr-v-trailing": {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
}


class Case(NamedTuple):
    """Everything that a picture depends on, but its seed."""

    solver: str
    schedule: str
    guidance: float
    steps: int
    prompt: str = PROMPT
    negative: str = ""

    def __str__(self) -> str:
        return f"{self.solver}-{self.schedule}-g{self.guidance:g}" + (f"-{self.negative}" if self.negative else "")

    @property
    def config(self) -> dict[str, Any]:
        config = {"_class_name": CLASSES[self.solver].__name__, **BETAS, **SCHEDULES[self.schedule]}
        return {**config, "clip_sample": False, "set_alpha_to_one": False} if self.solver == "ddim" else config


CASES = [Case(solver, schedule, g, STEPS[solver]) for solver in CLASSES for schedule in SCHEDULES for g in (1.0, 5.0)]
CASES += [Case("euler", "eps-leading", 5.0, 4, negative=NEGATIVE)]


@pytest.fixture(scope="module")
def folder(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model with a UNet that varies more from timestep to timestep: on smooth ones all solvers are right,
    and a step more or less hardly shows."""
    folder = tmp_path_factory.mktemp("lively") / "tiny-xl"
    shutil.copytree(sdxl_folder, folder)
    state = load_file(folder / "unet" / WEIGHTS)
    for name in state:
        if name.startswith("time_embedding") and name.endswith("weight"):
            state[name] *= 6.0
        elif name.startswith("conv_out"):
            state[name] *= 2.0
    save_file(state, folder / "unet" / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImageModel:
    return load(folder)


@pytest.fixture(scope="module")
def published(folder: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rows_of(model: TextToImageModel, case: Case, seeds: tuple[int, ...] = SEEDS) -> list[Row]:
    plan = make_plan(Schedule.from_config(case.config), case.solver, case.steps, Guidance(case.guidance))
    conditions = prepare(model, case.prompt, case.negative, case.guidance > 1.0, WIDTH, HEIGHT)
    return [start_row(model, plan, conditions, seed, (WIDTH, HEIGHT)) for seed in seeds]


def finish(model: TextToImageModel, rows: list[Row], padded_lanes: int = 0) -> Tensor:
    """Take unfinished rows to their ends, all that are left in one evaluation; their latents."""
    while unfinished := [row for row in rows if not row.finished]:
        advance(model.denoisers, unfinished, padded_lanes)
    return torch.stack([row.state[0] for row in rows])


def pictures_of(model: TextToImageModel, case: Case) -> np.ndarray:
    rows = rows_of(model, case)
    finish(model, rows)
    return decode(model.decoder, rows)


def run_published(published: StableDiffusionXLPipeline, case: Case) -> tuple[Tensor, np.ndarray]:
    """Final latents and pictures [B, H, W, 3] in [0, 1], one for each seed."""
    published.scheduler = CLASSES[case.solver].from_config(case.config)
    latents = []
    pictures = published(
        [case.prompt] * len(SEEDS),
        negative_prompt=[case.negative] * len(SEEDS) if case.negative else None,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        width=WIDTH,
        height=HEIGHT,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        callback_on_step_end=lambda _pipeline, _step, _time, state: latents.append(state["latents"]) or {},
    ).images
    return latents[-1], pictures


def distance(result: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm of all latents. Most is left by Euler under zero terminal SNR, about 3e-5: the
    published scheduler mixes a latent with noise of sigma 4096 in fp32."""
    return float((result - expected).norm() / expected.norm())


def mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    """In levels of 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_latents_and_pictures_equal_the_published_pipeline(
    model: TextToImageModel, published: StableDiffusionXLPipeline, case: Case
) -> None:
    rows = rows_of(model, case)
    latents = finish(model, rows)
    pictures = decode(model.decoder, rows)
    expected_latents, expected = run_published(published, case)
    assert expected.std() > 0.1  # 0.2 on the decoder's own scale, which is twice as wide
    assert distance(latents, expected_latents) < 1e-4
    assert pictures.dtype == np.uint8 and pictures.shape == expected.shape == (2, HEIGHT, WIDTH, 3)
    assert np.abs(pictures / 255.0 - expected).max() <= 1.0 / 255.0


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_another_seed_prompt_or_step_count_is_another_picture(model: TextToImageModel, case: Case) -> None:
    """Controls: a picture that hardly depends on its request would pass for equal."""
    picture, of_another_seed = pictures_of(model, case)
    assert mean_difference(picture, of_another_seed) > 10.0
    assert mean_difference(picture, pictures_of(model, case._replace(prompt=OTHER_PROMPT))[0]) > 10.0
    assert mean_difference(picture, pictures_of(model, case._replace(steps=case.steps - 1))[0]) > 10.0


def test_generate_uses_the_defaults_of_the_folder(
    model: TextToImageModel, published: StableDiffusionXLPipeline
) -> None:
    picture = generate(model, PROMPT, seed=5, steps=3)
    published.scheduler = EulerDiscreteScheduler.from_config(model.spec.scheduler_config)
    expected = published(
        PROMPT,
        num_inference_steps=3,
        guidance_scale=model.spec.guidance,
        width=32,
        height=32,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert picture.shape == (32, 32, 3)
    assert np.abs(picture / 255.0 - expected).max() <= 1.0 / 255.0


MIXED = [
    Case("euler", "eps-leading", 5.0, 4),
    Case("euler-ancestral", "eps-leading", 1.0, 5),
    Case("ddim", "zero-snr-v-trailing", 7.5, 3, negative=NEGATIVE),
    Case("dpm++2m", "eps-leading", 3.0, 6, OTHER_PROMPT),
]


@pytest.fixture(scope="module")
def alone(model: TextToImageModel) -> Tensor:
    """Final latents of the mixed rows, each advanced by itself in an evaluation of eight lanes."""
    return torch.cat([finish(model, rows_of(model, case, (3,)), padded_lanes=8) for case in MIXED])


def mixed_rows(model: TextToImageModel, cases: list[Case] = MIXED) -> list[Row]:
    return [rows_of(model, case, (3,))[0] for case in cases]


def test_mixed_rows_advanced_together_keep_their_bits(model: TextToImageModel, alone: Tensor) -> None:
    """Solvers, steps, guidance and even predictions differ; the evaluation always has eight lanes."""
    assert torch.equal(finish(model, mixed_rows(model), padded_lanes=8), alone)
    assert torch.equal(finish(model, mixed_rows(model)[::-1], padded_lanes=8).flip(0), alone)


def test_rows_may_join_while_others_are_under_way(model: TextToImageModel, alone: Tensor) -> None:
    rows = mixed_rows(model)
    advance(model.denoisers, rows[:1], 8)
    advance(model.denoisers, rows[:2], 8)
    advance(model.denoisers, rows[1:3], 8)  # the first one waits
    assert [row.line for row in rows] == [2, 2, 1, 0]
    assert torch.equal(finish(model, rows, padded_lanes=8), alone)


def test_mixed_rows_in_evaluations_of_any_size_agree(model: TextToImageModel, alone: Tensor) -> None:
    assert distance(finish(model, mixed_rows(model)), alone) < 1e-5


def test_a_neighbour_changes_itself_only(model: TextToImageModel, alone: Tensor) -> None:
    changed = [MIXED[0], MIXED[1]._replace(prompt=OTHER_PROMPT), *MIXED[2:]]
    latents = finish(model, mixed_rows(model, changed), padded_lanes=8)
    assert torch.equal(latents[[0, 2, 3]], alone[[0, 2, 3]])
    assert (latents[1] - alone[1]).abs().mean() > 0.1 * alone[1].std()


def test_a_network_in_bf16_draws_nearly_the_same(model: TextToImageModel, folder: Path) -> None:
    case = Case("euler", "eps-leading", 5.0, 3)
    half = replace(model, denoisers={"unet": load_unet(folder, torch.bfloat16)})
    exact, rounded = (finish(each, rows_of(each, case)) for each in (model, half))
    assert rounded.dtype == torch.float32
    assert 1e-4 < distance(rounded, exact) < 0.1


def test_a_row_is_finished_after_its_last_line(model: TextToImageModel) -> None:
    (row,) = rows_of(model, MIXED[3], (3,))
    assert row.state.shape == (2, 4, HEIGHT // 2, WIDTH // 2)  # dpm++2m keeps one older estimate
    for line in range(6):
        assert (row.line, row.finished) == (line, False)
        advance(model.denoisers, [row])
    assert row.finished


def test_guidance_of_one_runs_a_single_lane(model: TextToImageModel) -> None:
    calls = []

    def counting(x: Tensor, *inputs: Tensor) -> Tensor:
        calls.append(len(x))
        return model.denoisers["unet"](x, *inputs)

    for guidance in (0.0, 1.0, 1.5):
        advance({"unet": counting}, rows_of(model, MIXED[0]._replace(guidance=guidance), (3,)))
    assert calls == [1, 1, 2]


@pytest.mark.parametrize(
    ("size", "picture", "mask", "message"),
    [
        ((WIDTH + 1, HEIGHT), None, None, "size is 41x24 pixels, expected multiples of 2"),
        ((WIDTH, HEIGHT), (3, HEIGHT, 8), None, r"picture has shape \[3, 24, 8\], expected \[3, 24, 40\]"),
        ((WIDTH, HEIGHT), (HEIGHT, WIDTH), None, r"picture has shape \[24, 40\]"),
        ((WIDTH, HEIGHT), (3, HEIGHT, WIDTH), (3, HEIGHT, WIDTH), r"mask has shape .* expected \[1, 24, 40\]"),
        ((WIDTH, HEIGHT), None, (1, HEIGHT, WIDTH), "begins from a picture, and none is given"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(
    model: TextToImageModel,
    size: tuple[int, int],
    picture: tuple[int, ...] | None,
    mask: tuple[int, ...] | None,
    message: str,
) -> None:
    plan = make_plan(model.schedule, "euler", 2, Guidance())
    given = (None if shape is None else torch.zeros(shape) for shape in (picture, mask))
    with pytest.raises(ValueError, match=message):
        start_row(model, plan, {}, 1, size, *given)


def test_a_model_without_its_encoder_takes_no_picture(model: TextToImageModel) -> None:
    plan = make_plan(model.schedule, "euler", 2, Guidance())
    with pytest.raises(ValueError, match="'tiny-xl' was loaded without its encoder"):
        start_row(replace(model, encoder=None), plan, {}, 1, (WIDTH, HEIGHT), torch.zeros(3, HEIGHT, WIDTH))


def test_large_pictures_are_coded_in_tiles(model: TextToImageModel, folder: Path) -> None:
    vae, scale = load_vae(folder), load_vae(folder).spec.scaling_factor
    latents = torch.randn(1, 4, 4, 520, generator=torch.Generator().manual_seed(1))
    picture = torch.rand(1, 3, 8, 1040, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    assert model.encoder is not None
    with torch.inference_mode():
        assert torch.equal(model.decoder(latents), tiled_decode(vae.decode, latents, 2))
        assert distance(model.decoder(latents), vae.decode(latents)) > 1e-4
        encoded = model.encoder(picture, torch.zeros(1, 4, 4, 520))
        assert distance(encoded, tiled_encode(vae.encode_unscaled, picture, 2) * scale) < 1e-6
        assert distance(encoded, vae.encode(picture)) > 1e-4


def test_decode_rounds_and_clips_each_picture_by_itself(model: TextToImageModel) -> None:
    """A stand-in decoder of known levels: -2, -1, 0, 1/255 and 2 become 0, 0, 128, 128 and 255."""
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0 / 255.0, 2.0])
    pictures = decode(lambda latents: levels.expand(len(latents), 3, 1, 5), rows_of(model, MIXED[0]))
    assert pictures.tolist() == [[[[v] * 3 for v in (0, 0, 128, 128, 255)]]] * 2


def test_the_schedule_and_sizes_of_the_folder_are_read(model: TextToImageModel) -> None:
    assert model.schedule == Schedule.from_config(model.spec.scheduler_config)
    assert (model.schedule.spacing, model.schedule.steps_offset) == ("leading", 1)
    assert (model.latent_channels, model.downscale) == (4, 2)
