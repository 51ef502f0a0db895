"""Make ``emoji-xl-turbo``, the student of ``emoji-xl`` that draws in one to four steps."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch

from models.conditioners.sdxl import SDXLConditioner
from models.spec.config import read_json
from models.spec.unet import read_unet_spec
from models.training.artwork import download, render
from models.training.concepts import CONCEPTS, HELD_OUT
from models.training.diffusion import SCENES, SCHEDULER_CONFIG, Examples
from models.training.distillation import COURSES, Distillation, distil
from models.weights import load_unet, load_vae, save_network

SEED = 2
SHARED = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
"""Subfolders that student and teacher have in common, byte by byte."""
TURBO_SCHEDULER = {
    **{key: value for key, value in SCHEDULER_CONFIG.items() if key not in ("clip_sample", "set_alpha_to_one")},
    "_class_name": "EulerAncestralDiscreteScheduler",
}
SERVING = {"steps": 1, "guidance": 1.0, "solver": "euler-ancestral", "sizes": [[64, 64]]}


def train_emoji_xl_turbo(work: Path, teacher: Path, out: Path) -> None:
    """Distil the model folder ``teacher``, resuming what was begun in ``work``, and write the model folder ``out``."""
    download(work / "artwork")
    examples = Examples(render(work / "artwork"), CONCEPTS, load_vae(teacher), HELD_OUT, SCENES)
    unet, conditioner = load_unet(teacher), SDXLConditioner.load(teacher, read_unet_spec(teacher))
    torch.manual_seed(SEED)
    student = copy.deepcopy(unet).requires_grad_(True)
    text_dim = unet.spec.vector_dim - 6 * unet.spec.time_id_dim
    networks = Distillation(student, text_dim)
    for name, course in COURSES.items():
        checkpoint = work / f"turbo-{name}.pt"
        networks = distil(examples, unet, conditioner, networks.requires_grad_(True), checkpoint, course)
    export(networks.student.state_dict(), teacher, out)


def export(student: dict[str, torch.Tensor], teacher: Path, out: Path) -> None:
    """Write a diffusers SDXL folder as SDXL-Turbo's is: the teacher's, with another UNet and scheduler."""
    for part in SHARED:
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
