"""``darkroom train`` hands its folders on, and tells what is wrong in a line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from models.training.profile import PROFILES, SMALL
from service.cli import app
from service.commands.train import ProfileChoice


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """A training module that trains nothing."""
    module = types.ModuleType(f"models.training.{name}")
    for function, body in functions.items():
        setattr(module, function, body)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_each_command_hands_its_folders_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    stand_in(monkeypatch, "emoji_xl", train_emoji_xl=lambda *folders: asked.append(folders))
    stand_in(monkeypatch, "emoji_xl_turbo", train_emoji_xl_turbo=lambda *folders: asked.append(folders))
    stand_in(monkeypatch, "emoji_svd", train_emoji_svd=lambda *folders: asked.append(folders), PACKAGES=("fonts",))
    stand_in(monkeypatch, "artwork", download=lambda *what: asked.append(what), render=lambda _folder: [1, 2])
    stand_in(monkeypatch, "animations", render_animations=lambda _folder: [1, 2, 3])
    work, out, teacher = tmp_path / "work", tmp_path / "out", tmp_path / "teacher"
    folders = ["--work", str(work), "--out", str(out)]
    assert CliRunner().invoke(app, ["train", "emoji-xl", *folders]).exit_code == 0
    assert CliRunner().invoke(app, ["train", "emoji-xl-turbo", *folders, "--teacher", str(teacher)]).exit_code == 0
    done = CliRunner().invoke(app, ["train", "data", "--work", str(work)])
    assert done.exit_code == 0 and "2 drawings and 3 animations" in done.output
    assert CliRunner().invoke(app, ["train", "emoji-svd", *folders, "--image-model", str(teacher)]).exit_code == 0
    assert asked == [
        (work, out, SMALL),
        (work, teacher, out, SMALL),
        (work / "artwork", ("fonts",)),
        (work, teacher, out, SMALL),
    ]


def test_the_full_profile_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    stand_in(monkeypatch, "emoji_xl", train_emoji_xl=lambda *given: asked.append(given))
    command = ["train", "emoji-xl", "--work", str(tmp_path), "--out", str(tmp_path), "--profile", "full"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "profile=full trains on a GPU" in done.output and not asked
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert CliRunner().invoke(app, command).exit_code == 0 and asked == [(tmp_path, tmp_path, PROFILES["full"])]


def test_the_command_knows_every_profile() -> None:
    assert set(get_args(ProfileChoice)) == set(PROFILES)


def test_a_fault_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Path) -> None:
        raise RuntimeError("npm is missing")

    stand_in(monkeypatch, "emoji_xl", train_emoji_xl=fail)
    done = CliRunner().invoke(app, ["train", "emoji-xl", "--work", str(tmp_path), "--out", str(tmp_path)])
    assert done.exit_code == 1 and done.output.strip() == "darkroom: npm is missing"
