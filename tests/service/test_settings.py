"""Settings: from the environment, checked, and handed to a child unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, installed_models, worker_name
from tests.service.api.conftest import write_model


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DARKROOM_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.backend) == ("127.0.0.1", 8000, "onnxruntime")
    assert settings.data == Path.home() / ".local/share/darkroom" and settings.threads >= 1
    assert settings.url == "http://127.0.0.1:8000"
    assert len(Settings.model_fields) <= 15
    below = (settings.store_path, settings.bus_path, settings.artifacts_path, settings.engines_path)
    assert all(path.parent == settings.data for path in below) and len(set(below)) == 4


def test_a_child_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MODELS", "/a:/b")
    monkeypatch.setenv("DARKROOM_BACKEND", "torch")
    settings = Settings(port=1, data=Path("relative"), threads=3)
    assert settings.models == (Path("/a"), Path("/b")) and settings.data.is_absolute()
    environment = settings.child_environment()
    assert environment["OMP_NUM_THREADS"] == "3" and environment["OMP_WAIT_POLICY"] == "passive"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_they_are_frozen_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
    for name, value in {"PORT": "x", "THREADS": "0", "BACKEND": "cuda", "LEASE_S": "0", "LOG_LEVEL": "loud"}.items():
        with monkeypatch.context() as changed:
            changed.setenv(f"DARKROOM_{name}", value)
            with pytest.raises(ValidationError):
                Settings()


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")])
def test_the_url_of_a_wildcard_address_is_this_machine(host: str, url: str) -> None:
    assert Settings(host=host).url == url


def test_installed_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.ZOO", tmp_path / "zoo")
    for name in ("zoo/shipped", "more/b", "more/a", "single"):
        write_model(tmp_path / name)
    settings = Settings(models=(tmp_path / "more", tmp_path / "single"))
    assert list(installed_models(settings)) == ["shipped", "a", "b", "single"]
    with pytest.raises(ValueError, match="does not exist"):
        installed_models(Settings(models=(tmp_path / "none",)))
    write_model(tmp_path / "other" / "a")
    with pytest.raises(ValueError, match="two models are named 'a'"):
        installed_models(Settings(models=(tmp_path / "more", tmp_path / "other")))
    (tmp_path / "single" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="FluxPipeline"):
        installed_models(settings)


def test_worker_names_differ_by_process() -> None:
    assert worker_name(1) != worker_name(2) and worker_name(7) == worker_name(7)
