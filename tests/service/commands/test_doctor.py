"""``darkroom doctor``: what it finds, and that it finds faults."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.commands import doctor
from service.commands.doctor import examine
from service.jobs.job import TextToImage
from service.settings import Settings
from service.status import WorkerStatus


def found(**settings: Any) -> dict[str, tuple[str, str]]:
    """Level and text by subject."""
    return {finding.subject: (finding.level, finding.text) for finding in examine(Settings(**settings))}


def test_a_sound_installation(offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    said = found()
    assert [subject for subject, (level, _) in said.items() if level == "fault"] == []
    assert said["store"][1].endswith("0 queued, 0 running") and said["models"] == ("ok", "tiny")
    assert said["extra worker"][0] == "ok" and "torch 2" in said["extra worker"][1]
    assert said["networks"] == ("ok", "on the processor, fp32, onnxruntime")
    assert said["GPU"][0] == said["server"][0] == said["worker"][0] == said["engines"][0] == "note"
    done = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "0 queued" in done.output


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("store", "unix:///none/redis.sock", "cannot be reached"),
        ("store", "mysql://x", "must be sqlite"),
        ("artifacts", "/dev/null/pictures", "/dev/null/pictures"),
        ("bus", "/dev/null/bus", "/dev/null/bus"),
        ("models", "/nowhere", "/nowhere does not exist"),
    ],
)
def test_each_fault_is_found(
    offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch, setting: str, value: str, said: str
) -> None:
    level, text = found(**{setting: value})[setting]
    assert level == "fault" and said in text
    monkeypatch.setenv(f"DARKROOM_{setting.upper()}", value)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_the_disk(offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 2**62)
    assert found()["data"][0] == "fault"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written" in found()["data"][1]


@pytest.mark.parametrize(
    ("code", "stdout", "level"),
    [(0, "NVIDIA H200, 143771 MiB, 580.95\n", "ok"), (9, "driver/library version mismatch\n", "fault")],
)
def test_gpus(offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, level: str) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    done: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], code, stdout, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    said = found()["GPU"]
    assert said[0] == level and stdout.strip() in said[1]


def test_where_networks_run(offline: list[TextToImage], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (("is_available", True), ("device_count", 1)):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda said=said: said)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr("service.worker.placement.weights_limit", lambda *_: 90 * 2**30)
    text = "on cuda:0 (NVIDIA H200/sm_90), bf16, torch, kernels geglu=torch, CUDA graphs, up to 90.0 GiB of weights"
    assert found(kernels="geglu=torch")["networks"] == ("ok", text)
    monkeypatch.setattr("service.worker.upgrades.load_tensorrt", lambda _: None)
    assert "bf16, plans of tensorrt and torch, kernels" in found(backend="tensorrt")["networks"][1]
    level, text = found(device="cpu", backend="tensorrt")["networks"]
    assert level == "fault" and "which needs a GPU" in text
    assert found(device="cuda:1")["networks"] == ("fault", "device is 'cuda:1', and torch sees 1 CUDA devices")
    assert found(kernels="gelu=torch")["networks"][0] == "fault"


def test_the_worker_of_this_folder(offline: list[TextToImage], tmp_path: Path) -> None:
    path = Settings().worker_status_path
    path.parent.mkdir(parents=True)
    WorkerStatus(pid=1, state="ready", models=("tiny",)).write(path)
    assert found()["worker"] == ("ok", "process 1 is ready, with tiny")
    WorkerStatus(pid=2**22 + 1, state="ready").write(path)
    assert found()["worker"][1].endswith("has died")


def test_a_password_is_not_shown(offline: list[TextToImage]) -> None:
    text = found(store="redis://user:secret@127.0.0.1:1/0")["store"][1]
    assert "secret" not in text and "@127.0.0.1:1/0" in text
