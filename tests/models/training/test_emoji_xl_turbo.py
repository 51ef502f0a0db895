"""The student's folder: the teacher's, with another UNet and the scheduler of SDXL-Turbo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from models.families import text_to_image
from models.spec.model import ModelSpec
from models.training.emoji_xl_turbo import SHARED, export
from models.weights import load_unet
from tests.support.tiny_xl import randomise


@pytest.fixture(scope="module")
def student(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turbo") / "student"
    unet = randomise(load_unet(sdxl_folder), 99)
    export(unet.state_dict(), sdxl_folder, folder)
    return folder


def test_what_is_shared_is_shared_byte_by_byte(sdxl_folder: Path, student: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for part in SHARED for path in (folder / part).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    assert contents(student) == contents(sdxl_folder) and len(contents(student)) > 8
    unets = [
        (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in (student, sdxl_folder)
    ]
    assert unets[0] != unets[1]


def test_it_is_read_as_a_student_of_distillation(sdxl_folder: Path, student: Path) -> None:
    spec, teacher = ModelSpec.read(student), ModelSpec.read(sdxl_folder)
    assert (spec.steps, spec.guidance, spec.max_guidance, spec.solver) == (1, 1.0, 1.0, "euler-ancestral")
    assert teacher.max_guidance > 1.0


@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_draws_the_same(student: Path, steps: int) -> None:
    model = text_to_image.load(student)
    ours = text_to_image.generate(model, "a red cat", seed=3, steps=steps).astype(int)
    pipeline = StableDiffusionXLPipeline.from_pretrained(student, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a red cat",
        num_inference_steps=steps,
        guidance_scale=0.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    levels = (np.asarray(theirs) * 255).round().astype(int)
    assert abs(ours - levels).max() <= 2
    assert abs(ours - levels[::-1]).mean() > 5
