"""Models that come and go while a process runs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from service.catalogue import LOOK_EVERY_S, Catalogue
from service.settings import Settings
from tests.service.api.conftest import write_model


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += LOOK_EVERY_S


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("service.settings.ZOO", tmp_path / "zoo")
    monkeypatch.setattr("service.catalogue.ZOO", tmp_path / "zoo")
    write_model(tmp_path / "zoo" / "shipped")
    write_model(tmp_path / "more" / "a")
    return Settings(models=(tmp_path / "more",))


def test_models_come_and_go(settings: Settings, tmp_path: Path) -> None:
    clock = Clock()
    models = Catalogue(settings, clock)
    first = models["shipped"]
    write_model(tmp_path / "more" / "b")
    assert list(models) == ["shipped", "a"], "nobody looks all the time"
    clock.later()
    assert list(models) == list(models.keys()) == ["shipped", "a", "b"] and len(models) == 3
    assert models["b"].folder == tmp_path / "more" / "b" and dict(models.items())["a"] in models.values()
    shutil.rmtree(tmp_path / "more" / "a")
    clock.later()
    assert list(models) == ["shipped", "b"] and "a" not in models
    assert models["shipped"] == first


def test_a_folder_that_is_being_copied_changes_nothing_until_it_is_whole(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    models = Catalogue(settings, clock)
    write_model(tmp_path / "copy")
    (tmp_path / "more" / "b").mkdir()
    shutil.copy(tmp_path / "copy" / "model_index.json", tmp_path / "more" / "b")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            clock.later()
            assert list(models) == ["shipped", "a"]
    assert len(caplog.records) == 1, "said once"
    shutil.copytree(tmp_path / "copy", tmp_path / "more" / "b", dirs_exist_ok=True)
    clock.later()
    assert list(models) == ["shipped", "a", "b"]


def test_a_model_with_other_weights_under_its_name_is_another_one(settings: Settings, tmp_path: Path) -> None:
    weights = tmp_path / "more" / "a" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"1")
    clock = Clock()
    models = Catalogue(settings, clock)
    first = models["a"]
    weights.write_bytes(b"12")
    assert models["a"] == first and models.replaced() == []
    clock.later()
    assert models["a"] != first and models["shipped"] == models["shipped"]
    assert models.replaced() == ["a"] and models.replaced() == []
    shutil.rmtree(tmp_path / "more" / "a")
    write_model(tmp_path / "more" / "b")
    clock.later()
    assert models.replaced() == [], "one that comes or goes replaces none"


def test_nothing_is_read_again_while_nothing_changes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    models = Catalogue(settings, clock)
    monkeypatch.setattr("service.catalogue.installed_models", lambda _: pytest.fail("read again"))
    clock.later()
    assert list(models) == ["shipped", "a"]


def test_at_the_start_a_fault_is_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "more" / "a" / "unet" / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json"):
        Catalogue(settings)
