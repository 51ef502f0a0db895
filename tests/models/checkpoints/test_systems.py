"""The published systems: their networks have as many parameters as were published, and their files are read by the
code that reads folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.blank import blank_network
from models.checkpoints.systems import systems
from models.schedule import Schedule
from models.spec.model import ModelSpec
from tests.support.single_files import LAYOUT

CLIP_L, BIGG, T5 = 123_060_480, 694_659_840, 4_762_310_656
KL = 83_653_863
PARAMETERS = {
    "stable-diffusion-1.5": {"unet": 859_520_964, "vae": KL, "text_encoder": CLIP_L},
    "stable-diffusion-2.1": {"unet": 865_910_724, "vae": KL, "text_encoder": 340_387_840},
    "stable-diffusion-x4-upscaler": {"unet": 473_398_020, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": KL, "text_encoder": CLIP_L, "text_encoder_2": BIGG},
    "sdxl-inpainting": {"unet": 2_567_478_084, "vae": KL, "text_encoder": CLIP_L, "text_encoder_2": BIGG},
    "sdxl-refiner": {"unet": 2_259_526_660, "vae": KL, "text_encoder_2": BIGG},
    "svd-xt": {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800},
    "sd3-medium": {"transformer": 2_028_328_000, "vae": 83_819_683, "text_encoder_3": T5},
    "sd3.5-medium": {"transformer": 2_243_171_520},
    "sd3.5-large": {"transformer": 8_056_627_520},
}


@pytest.mark.parametrize("system", PARAMETERS)
def test_networks_have_as_many_parameters_as_were_published(system: str) -> None:
    for part, parameters in PARAMETERS[system].items():
        network = blank_network(systems()[system].parts[part])
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters, part


@pytest.mark.parametrize("system", systems())
def test_their_files_are_read_as_those_of_a_folder(system: str, tmp_path: Path) -> None:
    described = systems()[system]
    for name, content in described.files.items():
        path = tmp_path / system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    spec = ModelSpec.read(tmp_path / system)
    assert spec.pipeline == described.files["model_index.json"]["_class_name"]
    assert Schedule.from_config(spec.scheduler_config)
    assert described.licence and described.parts.keys() <= LAYOUT[described.layout].scopes.keys()
