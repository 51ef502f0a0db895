"""``darkroom engines`` on a real cache and a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engines.cache import EngineCache, EngineKey
from engines.openvino_session import BLOB_FILE
from engines.plan import PlanReport
from engines.quality import Quality
from engines.refused import Refusal, refusal_of, refuse
from models.spec.model import ModelSpec
from service.cli import app
from service.commands.engines import Backend, _chosen
from tests.support.openvino import needs_openvino
from tests.support.tiny_towers import write_tiny_sd3

KEY = EngineKey("unet", "ab", "fp32", "onnx-20", "torch-2.13.0", "cd")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["engines", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one old engine of a megabyte."""
    cache = EngineCache(tmp_path / "engines")
    entry = cache.get_or_build(KEY, lambda folder: (folder / "network.onnx").write_bytes(b"x" * 2**20))
    os.utime(entry, (time.time() - 1000,) * 2)
    return tmp_path


def test_list(data: Path) -> None:
    done = run("list", "--data", data)
    assert done.exit_code == 0
    assert all(text in done.output for text in (KEY.digest[:12], "unet", "fp32", "onnx-20", "1.0", "1 engines, 1 MiB"))
    assert "0 engines, 0 MiB" in run("list", "--data", data / "empty").output


def test_check_finds_a_flipped_byte(data: Path) -> None:
    assert (done := run("check", "--data", data)).exit_code == 0 and "unet: intact" in done.output
    engine = data / "engines" / KEY.digest / "network.onnx"
    engine.write_bytes(b"y" + engine.read_bytes()[1:])
    done = run("check", "--data", data)
    assert done.exit_code == 1 and "unet: damaged" in done.output


def test_prune(data: Path) -> None:
    assert "0 engines" in run("prune", "--max-mib", "2", "--data", data).output
    done = run("prune", "--max-mib", "0", "--data", data)
    assert done.exit_code == 0 and f"{KEY.digest[:12]} unet: deleted\n1 engines, 1 MiB" in done.output
    assert not (data / "engines" / KEY.digest).exists()
    assert run("prune", "--max-mib", "-1", "--data", data).exit_code == 2


@pytest.mark.timeout(600)
def test_build_takes_a_folder_and_finds_what_is_there(sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    done = run("build", sdxl_folder, "--data", tmp_path)
    lines = done.output.splitlines()
    assert done.exit_code == 0 and [line.split(":")[0] for line in lines] == [
        "tiny-xl unet", "tiny-xl vae/decoder", "tiny-xl vae/encoder", "tiny-xl text_encoder", "tiny-xl text_encoder_2"
    ]  # fmt: skip
    assert all(Path(line.split(": ")[1]).exists() for line in lines)


@pytest.mark.parametrize(
    ("backend", "names", "chosen"),
    [
        ("openvino", None, ["transformer", "vae/decoder", "vae/encoder", "text_encoder", "text_encoder_2"]),
        ("tensorrt-rtx", None, ["transformer", "vae/decoder", "vae/encoder"]),
        ("tensorrt", ["text_encoder_3"], ["text_encoder_3"]),
    ],
)
def test_what_is_built_unless_it_is_named(
    backend: Backend, names: list[str] | None, chosen: list[str], tmp_path: Path
) -> None:
    write_tiny_sd3(tmp_path)
    assert [network.name for network in _chosen(ModelSpec.read(tmp_path), names, backend)] == chosen


@pytest.mark.timeout(600)
def test_build_in_8_bits_where_the_card_asks_for_them(
    sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.engines.PROMPTS", ("a cat",))
    shutil.copytree(sdxl_engines, tmp_path / "engines")  # others look for what is not in theirs
    shutil.copytree(sdxl_folder, folder := tmp_path / "tiny-eight")
    (folder / "darkroom.json").write_text(json.dumps({"steps": 2, "eight_bits": {"vae": "int8"}}))
    given = ("build", folder, "--data", tmp_path, "--network", "vae/decoder")
    done = run(*given)
    assert done.exit_code == 0, done.output
    entry = Path(done.output.strip().split(": ")[1]).parent
    assert "int8 in" in (listed := run("list", "--data", tmp_path).output) and "too slow" not in listed
    refuse(entry, Refusal("slower", "too slow"))
    assert "too slow" in run("list", "--data", tmp_path).output
    monkeypatch.setattr("engines.quality.drawn", lambda *_: pytest.fail("it is there"))
    assert run(*given).output == done.output and refusal_of(entry) is None, "who builds it by hand wants it"
    measured = Quality(psnr_db=31.0, levels=1.5, seconds_ratio=0.9, bytes_ratio=0.3)
    monkeypatch.setattr("engines.quality.measure", lambda *_: measured)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert "tiny-eight, vae/decoder in int8: 31.0 dB" in run("quality", folder, "--data", tmp_path).output


@needs_openvino
@pytest.mark.timeout(600)
def test_build_for_openvino(sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    done = run("build", sdxl_folder, "--data", tmp_path, "--backend", "openvino", "--network", "vae/encoder")
    assert done.exit_code == 0 and Path(done.output.strip().split(": ")[1]).name == BLOB_FILE
    assert "onnx-20 openvino" in run("list", "--data", tmp_path).output


@pytest.mark.timeout(600)
def test_build_a_plan(sdxl_folder: Path, sdxl_engines: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    given = ("--backend", "tensorrt-rtx", "--architecture", "sm89", "--network", "vae/decoder", "--size", "16x8")
    done = run("build", sdxl_folder, "--data", tmp_path, *given, "--lanes", "1", "--lanes", "4")
    assert done.exit_code == 0, done.output
    report = PlanReport.read(Path(done.output.strip().split(": ")[1]).parent)
    assert report.buckets == ({"batch": 1, "height": 4, "width": 8}, {"batch": 4, "height": 4, "width": 8})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "say --denoiser or --decoder"), (["--denoiser", "int4"], "int4"), (["--decoder", "int8"], "dB, ")],
)
def test_quality(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    measured = Quality(psnr_db=31.0, levels=1.5, seconds_ratio=0.9, bytes_ratio=0.3)
    monkeypatch.setattr("engines.quality.measure", lambda *_: measured)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    done = run("quality", sdxl_folder, "--data", tmp_path, *arguments)
    assert (done.exit_code == 0) is ("dB" in said) and said in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--network", "refiner"], "network 'refiner' is not in tiny, which has unet"),
        (["tiny", "--backend", "openvino", "--precision", "fp16"], "fp16: networks run in fp32 on OpenVINO"),
        (["tiny", "--backend", "tensorrt-rtx", "--size", "wide"], "--size 'wide', expected WIDTHxHEIGHT in pixels"),
        (["tiny", "--backend", "tensorrt-rtx", "--size", "30x31"], "is 31 pixels, expected a multiple of"),
    ],
)
def test_build_says_what_is_wrong(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "tiny").symlink_to(sdxl_folder)
    monkeypatch.setattr("service.settings.ZOO", tmp_path / "zoo")
    done = run("build", *arguments, "--data", tmp_path)
    assert done.exit_code == 1 and said in done.output
