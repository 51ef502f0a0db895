"""Measuring a video model of random weights: everything is filled in, and what knows nothing is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer

from models.training import clips, video_evaluate
from models.training.video_evaluate import controls_at_chance, main, real_clips, still_clip
from models.weights import load_temporal_vae
from tests.models.training.moving_art import animations, drawings
from tests.support.tiny_towers import write_tiny_svd


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "svd"
    write_tiny_svd(folder)
    (folder / "darkroom.json").write_text(json.dumps({"steps": 1, "guidance": 1.0, "sizes": [[64, 64]]}))
    return folder


def test_a_random_model_is_measured_and_fails_its_controls(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_evaluate, "download", lambda _folder, _packages: None)
    monkeypatch.setattr(video_evaluate, "render", lambda _folder: drawings())
    monkeypatch.setattr(video_evaluate, "render_animations", lambda _folder: animations())
    monkeypatch.setattr(video_evaluate, "STYLES", ("3d",))
    monkeypatch.setattr(video_evaluate, "UNSEEN_STYLES", ("3d",))
    monkeypatch.setattr(video_evaluate, "REAL_CLIPS", 4)
    monkeypatch.setattr(clips, "FRAMES", read_frames(model))
    monkeypatch.setattr(video_evaluate, "SHEET", 1)
    monkeypatch.setattr(video_evaluate, "describe", lambda *_: {**DESCRIBED})
    out = tmp_path / "zoo" / "out"
    out.mkdir(parents=True)
    with pytest.raises(typer.Exit):  # its first frames are nobody's
        main(model, tmp_path, out, count=2, first_seed=0, trained_on="nothing")
    report = json.loads((out / "evaluation.json").read_text())
    assert not controls_at_chance(report["known"])
    assert report["known"]["first_frame_l1"] > 0.05
    card = (out / "README.md").read_text()
    assert "Trained on nothing" in card and "Fluent Emoji Animated" in card
    assert (out / "samples.png").stat().st_size > 1000 and (out.parent / "NOTICE").exists()


def read_frames(model: Path) -> int:
    return int(json.loads((model / "unet" / "config.json").read_text())["num_frames"])


DESCRIBED = {
    "model": "svd",
    "defaults": {"steps": 1, "guidance": 1.0, "solver": "euler", "size": [64, 64]},
    "frames": 4,
    "parameters": {"unet": 1_000_000},
    "training": {"data": {"clips": 4}},
}


def test_a_still_clip_shows_one_picture(model: Path) -> None:
    picture = torch.from_numpy(drawings().on_background()[0]).permute(2, 0, 1)
    clip = still_clip(load_temporal_vae(model), picture, 3)
    assert clip.shape == (3, 3, 64, 64) and 0.0 <= float(clip.min()) <= float(clip.max()) <= 1.0
    white = still_clip(load_temporal_vae(model), torch.full_like(picture, 255), 3)
    assert not torch.allclose(clip, white, atol=1e-3)


def test_real_clips_all_move() -> None:
    made = real_clips(drawings(), animations(), 3, 0)
    assert len(made) == 3
    assert all(clip.diff(dim=0).abs().mean() > 0 for clip in made)
