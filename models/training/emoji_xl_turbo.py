"""Make ``emoji-xl-turbo``, the student of ``emoji-xl`` that draws in one to four steps."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.conditioners.sdxl import SDXLConditioner
from models.spec.config import read_json
from models.training import distillation
from models.training.artwork import download, render
from models.training.concepts import HELD_OUT
from models.training.diffusion import SCENES, SCHEDULER_CONFIG, Examples
from models.training.distillation import COURSES, Distillation, distil
from models.training.profile import SMALL, Profile
from models.weights import load_unet, load_vae, save_network

SEED = 2
SHARED = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "vae_tiny")
"""Subfolders that student and teacher have in common, byte by byte."""
TURBO_SCHEDULER = {
    **{key: value for key, value in SCHEDULER_CONFIG.items() if key not in ("clip_sample", "set_alpha_to_one")},
    "_class_name": "EulerAncestralDiscreteScheduler",
}
SERVING = {"steps": 1, "guidance": 1.0, "solver": "euler-ancestral", "sizes": [[64, 64]]}


def train_emoji_xl_turbo(work: Path, teacher: Path, out: Path, profile: Profile = SMALL) -> None:
    """Distil the model folder ``teacher``, resuming what was begun in ``work``, and write the model folder ``out``."""
    download(work / "artwork")
    drawings = render(work / "artwork")
    with torch.device(profile.device):
        vae, unet = load_vae(teacher).to(profile.device), load_unet(teacher).to(profile.device)
        concepts, styles = profile.concepts(drawings), profile.styles(drawings)
        examples = Examples(drawings, concepts, vae, HELD_OUT, SCENES, styles=styles)
        conditioner = SDXLConditioner.load(teacher, unet.spec)
        nn.ModuleList(conditioner.networks).to(profile.device)
        torch.manual_seed(SEED)
        student = copy.deepcopy(unet).requires_grad_(True)
        networks = Distillation(student, unet.spec.vector_dim - 6 * unet.spec.time_id_dim)
        for name, course in COURSES.items():
            course = replace(course, recipe=profile.recipe(course.recipe))
            begun, checkpoint = networks.requires_grad_(True), work / f"turbo-{name}.pt"
            networks = distil(
                examples, unet, conditioner, begun, checkpoint, course, profile.batch * distillation.BATCH
            )
    export(networks.student.state_dict(), teacher, out)


def export(student: dict[str, torch.Tensor], teacher: Path, out: Path) -> None:
    """Write a diffusers SDXL folder as SDXL-Turbo's is: the teacher's, with another UNet and scheduler."""
    for part in filter(lambda part: (teacher / part).is_dir(), SHARED):
        shutil.copytree(teacher / part, out / part, dirs_exist_ok=True)
    save_network(out / "unet", read_json(teacher / "unet" / "config.json"), student, torch.float16)
    index = read_json(teacher / "model_index.json")
    index["scheduler"] = ["diffusers", TURBO_SCHEDULER["_class_name"]]
    for name, content in (
        ("scheduler/scheduler_config.json", TURBO_SCHEDULER),
        ("darkroom.json", SERVING),
        ("model_index.json", index),
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
