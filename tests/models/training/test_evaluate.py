"""The evaluation from end to end on made-up pictures. Only `develop` runs a model, a tiny one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from models.families.text_to_image import generate, load
from models.training import diffusion, evaluate
from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, CONCEPTS
from models.training.evaluate import controls_at_chance, develop, main, parameters, ready_judge, recipes
from models.training.judge import Judge, Network

FEW = CONCEPTS[:13]
SIZE = 64
HELD_OUT = {(FEW[1].slug, CAPTION_STYLES[2]), (FEW[2].slug, CAPTION_STYLES[0])}
DESCRIPTION = {
    "model": "tiny",
    "defaults": {"steps": 20, "guidance": 3.0, "solver": "dpm++2m", "size": (SIZE, SIZE)},
    "parameters": {"unet": 1_234_567},
    "autoencoder_psnr_db": 24.68,
    "small_decoder_psnr_db": 23.1,
    "training": recipes(distilled=False),
}


def drawings() -> Drawings:
    """Discs; the red channel is the concept, the green one the style."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    pairs = [(c, s) for c in range(len(FEW)) for s in range(3)]
    pixels = np.zeros((len(pairs), SIZE, SIZE, 4), np.uint8)
    for picture, (concept, style) in zip(pixels, pairs, strict=True):
        picture[np.hypot(x, y) < 25] = (concept, 80 * style, 130, 255)
    concept, style = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    slugs, names = tuple(c.slug for c in FEW), tuple(c.name for c in FEW)
    return Drawings(pixels, concept, style, slugs, names, names, ((),) * len(FEW), CAPTION_STYLES)


class Oracle(Judge):
    """Reads the concept off the red channel in the middle."""

    def predict(self, pictures: np.ndarray) -> np.ndarray:
        return np.minimum(pictures[:, SIZE // 2, SIZE // 2, 0], len(self.slugs) - 1).astype(np.int64)


def recall(_model: object, prompts: Sequence[str], _first_seed: int) -> np.ndarray:
    """The drawing that a prompt names; for a scene a blank picture."""
    table = drawings()
    own = {f"{c.name} {s}": 3 * i + k for i, c in enumerate(FEW) for k, s in enumerate(CAPTION_STYLES)}
    blank = np.full((SIZE, SIZE, 3), 255, np.uint8)
    real = table.on_background()
    return np.stack([real[own[prompt]] if prompt in own else blank for prompt in prompts])


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen concepts, the last of which the judge does not know, and a model that recalls."""
    stand_ins = {
        "download": lambda _folder: None,
        "render": lambda _folder: drawings(),
        "load": lambda _folder: None,
        "develop": recall,
        "describe": lambda *_: DESCRIPTION,
        "ready_judge": lambda *_: None,
        "restrict": lambda _judge, slugs: Oracle(Network(len(slugs), 8), tuple(slugs)),
        "real_accuracy": lambda *_: {c.slug: 1.0 if c is not FEW[-1] else 0.5 for c in FEW},
        "CONCEPTS": FEW,
        "HELD_OUT": HELD_OUT,
        "REPEATS": {"placed": 1, "tinted": 2, "counted": 4, "paired": 3},
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(evaluate, name, stand_in)
    monkeypatch.setattr(diffusion, "SCENES", 20)


def run(out: Path, **options: Any) -> dict[str, Any]:
    """The report of an evaluation."""
    defaults = {
        "judge": None,
        "per_pair": 2,
        "first_seed": 0,
        "first": None,
        "blind": (0, Path()),
        "also_steps": [],
    }
    main(model=out, artwork=out, out=out, **{**defaults, "trained_on": "an abacus", **options})
    return json.loads((out / "evaluation.json").read_text())


def test_everything_is_written_and_held_out_pairs_are_apart(small_world: None, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    report = run(out, blind=(12, tmp_path / "blind.png"))
    assert report["pictures"] == 2 * (12 * 3 - 2) and report["held_out"]["pictures"] == 4
    assert report["held_out"]["pairs"] == sorted([f"{FEW[1].name} twemoji", f"{FEW[2].name} 3d"])
    assert report["judge"]["accuracy"] == report["held_out"]["accuracy"] == report["style_obeyed"] == 1.0
    assert report["judge"]["classes"] == 12 and report["left_out"] == {FEW[-1].name: 0.5}
    assert {kind: figures["pictures"] for kind, figures in report["scenes"].items()} == {
        "placed": 55, "tinted": 14, "counted": 8, "paired": 12,
    }  # fmt: skip
    placed = report["scenes"]["placed"]["checks"]
    assert placed["place"]["share"] == 0.0 and placed["place"]["real"] == 1.0  # blank pictures, real scenes
    text = (out / "README.md").read_text()
    assert f"{FEW[-1].name} 50" in text and "an abacus" in text
    assert "Noto Emoji" in (tmp_path / "NOTICE").read_text()
    assert (tmp_path / "blind.answers.json").exists()
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width == 12 * 132 + 4
    with Image.open(out / "scenes.png") as sheet:
        assert sheet.height == 12 * 68 + 4


def test_other_step_counts_are_judged_too(small_world: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "with_steps", lambda _network, steps: steps)
    monkeypatch.setattr(
        evaluate, "develop", lambda model, prompts, seed: recall(None, prompts if model != 4 else prompts[::-1], seed)
    )
    report = run(tmp_path / "tiny", also_steps=[2, 4])
    assert report["other_steps"]["2"] == report["judge"]["accuracy"] == 1.0 and report["other_steps"]["4"] < 0.2
    assert "in 4 steps" in (tmp_path / "tiny" / "README.md").read_text()


def test_a_trial_takes_the_first_concepts_alone(small_world: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "HELD_OUT", {(FEW[5].slug, "noto")})
    report = run(tmp_path / "tiny", first=4, per_pair=1)
    assert report["pictures"] == 12 and report["held_out"] is None and report["only_first"] == 4
    assert list(report["judge"]["per_concept"]) == [concept.name for concept in FEW[:4]]


def test_the_run_fails_when_a_control_is_not_at_chance(small_world: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "controls_at_chance", lambda _report: False)
    with pytest.raises(typer.Exit):
        run(tmp_path / "tiny")
    assert (tmp_path / "tiny" / "README.md").exists()


def test_each_control_counts() -> None:
    def report(judge: bool = True, shuffled: float = 0.1, scene: bool = True) -> dict[str, Any]:
        checks = {"place": {"control_at_chance": True}, "tint": {"control_at_chance": scene}}
        held_out = {"shuffled": shuffled, "at_most": 0.2}
        return {"judge": {"controls_at_chance": judge}, "held_out": held_out, "scenes": {"placed": {"checks": checks}}}

    assert controls_at_chance(report()) and controls_at_chance(report() | {"held_out": None})
    assert not any(map(controls_at_chance, (report(judge=False), report(shuffled=0.3), report(scene=False))))


def test_developed_pictures_are_those_of_their_own_prompts_and_seeds(sdxl_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "ROWS", 2)
    model = load(sdxl_folder)
    short = replace(model, spec=replace(model.spec, steps=3))
    prompts = ["a cat", "two dogs", "a red bird"]
    pictures = develop(short, prompts, 40)
    for i, prompt in enumerate(prompts):
        expected = generate(model, prompt, 40 + i, steps=3).astype(int)
        assert np.abs(pictures[i] - expected).max() <= 1  # a batch may round otherwise
        assert np.abs(pictures[i - 1] - expected).max() > 10


def test_a_judge_is_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained: list[int] = []

    def train(_drawings: Drawings, slugs: Sequence[str], steps: int) -> Judge:
        trained.append(steps)
        return Judge(Network(len(slugs), 8).eval(), tuple(slugs))

    monkeypatch.setattr(evaluate, "train_judge", train)
    monkeypatch.setattr(evaluate, "CONCEPTS", FEW)
    path = tmp_path / "judge.safetensors"
    first, again = ready_judge(path, drawings(), 7), ready_judge(path, drawings(), 7)
    assert trained == [7] and first.slugs == again.slugs == tuple(concept.slug for concept in FEW)
    assert torch.equal(first.network.head.weight, again.network.head.weight)
    ready_judge(None, drawings(), 8)
    assert trained == [7, 8]


def test_parameters_are_counted_from_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7), "c": torch.zeros(())}, tmp_path / "x.safetensors")
    assert parameters(tmp_path / "x.safetensors") == 23


def test_both_stages_are_described_with_their_seeds() -> None:
    first, second = (recipes(distilled=False)[f"{stage} stage"] for stage in ("first", "second"))
    assert (first["concepts"], second["concepts"]) == (142, len(CONCEPTS)) and second["held_out_pairs"] == 48
    assert "distillation, learn" not in recipes(distilled=False)
    assert recipes(distilled=True)["distillation, learn"]["teacher_guidance"] > 1.0
    assert first["seed"] != second["seed"] and second["scenes"] > 0 and "scenes" not in first
