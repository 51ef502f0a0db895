"""Settings: from the environment, checked, and handed to a child unchanged."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.jobs.open import open_store
from service.jobs.retention import Retention
from service.settings import Settings, installed_adapters, installed_models, worker_name
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
    assert len(Settings.model_fields) <= 29
    below = [Path(settings.bus_address), Path(settings.artifacts_address), settings.engines_path]
    below += [settings.worker_status_path, settings.worker_metrics_path]
    assert all(path.parent == settings.data for path in below) and len(set(below)) == 5
    assert settings.store_url == f"sqlite:///{settings.data}/jobs.sqlite3"


def test_a_data_folder_of_any_name_holds_the_store(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "50% ?full#é")
    with closing(open_store(settings.store_url)):
        assert [path.name for path in tmp_path.iterdir()] == ["50% ?full#é"]
        assert (settings.data / "jobs.sqlite3").is_file()


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://host", "unix:///run/redis.sock"])
def test_the_bus_is_where_a_redis_store_is(url: str) -> None:
    assert Settings(store=url).store_url == Settings(store=url).bus_address == url
    assert Settings(store=url, bus="redis://other").bus_address == "redis://other"
    on_disk = Settings(store="sqlite:////srv/jobs.db", data=Path("/d"))
    assert (on_disk.store_url, on_disk.bus_address) == ("sqlite:////srv/jobs.db", "/d/bus")


def test_folders_are_absolute_and_urls_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(bus="b", artifacts="~/a")
    assert (settings.bus_address, settings.artifacts_address) == (str(tmp_path / "b"), str(Path.home() / "a"))
    assert Settings(artifacts="s3://bucket/a").artifacts_address == "s3://bucket/a"


def test_retention() -> None:
    assert Settings().retention == Retention(max_age_s=7 * 86400.0, max_bytes=None)
    assert Settings(retention_s=0, retention_bytes=5).retention == Retention(max_age_s=None, max_bytes=5)
    assert Settings(retention_s=0).retention == Retention(max_age_s=None, max_bytes=None)


def test_adapters_are_looked_up_anew(tmp_path: Path) -> None:
    assert installed_adapters(Settings()) == {}
    settings = Settings(loras_path=tmp_path / "loras")
    assert installed_adapters(settings) == {}, "the folder may come later"
    (tmp_path / "loras").mkdir()
    for name in ("b.safetensors", "a.safetensors", "c.txt"):
        (tmp_path / "loras" / name).touch()
    assert list(installed_adapters(settings)) == ["a", "b"]
    assert installed_adapters(settings)["a"] == tmp_path / "loras" / "a.safetensors"


def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_API_KEYS", f"{'a' * 64}, {'b' * 64},")
    assert Settings().api_keys == ("a" * 64, "b" * 64) and Settings(api_keys=("x",)).api_keys == ("x",)


def test_a_child_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_MODELS", "/a:/b")
    monkeypatch.setenv("DARKROOM_BACKEND", "torch")
    settings = Settings(
        port=1,
        data=Path("relative"),
        threads=3,
        store="redis://h",
        bus="b",
        retention_bytes=2**40,
        loras_path=Path("loras"),
        api_keys=("a" * 64, "b" * 64),
    )
    assert settings.models == (Path("/a"), Path("/b")) and settings.data.is_absolute()
    environment = settings.child_environment()
    assert environment["OMP_NUM_THREADS"] == "3" and environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["SVT_LOG"] == "1"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_they_are_frozen_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
    wrong = {"PORT": "x", "THREADS": "0", "BACKEND": "cuda", "LEASE_S": "0", "LOG_LEVEL": "loud"}
    wrong |= {"RETENTION_S": "-1", "RETENTION_BYTES": "1.5", "DEVICE": "gpu", "PRECISION": "int8", "HOST_BYTES": "-1"}
    for name, value in wrong.items():
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


def test_a_model_that_draws_from_text_comes_first() -> None:
    shipped = installed_models(Settings())
    assert list(shipped) == ["emoji-xl", "emoji-xl-turbo", "emoji-svd"]
