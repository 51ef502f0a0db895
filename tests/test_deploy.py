"""The container files are right as far as that can be said without an engine, and the pinned versions are whole."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from service.settings import Settings
from tests.support.fresh_root import FreshRoot, assignments, bootstrap

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One FROM of the Dockerfile with the (instruction, argument) pairs below it."""

    name: str
    base: str
    steps: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        """What holds in the image: its own instruction, or that of the stage it is made from."""
        found = [value for name, value in self.steps if name == instruction]
        return found[-1] if found else STAGES[self.base].last(instruction)


def read_stages() -> dict[str, Stage]:
    parser = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
    stages: dict[str, Stage] = {}
    for line in parser.structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            base, _, name = value.split()
            stages[name] = Stage(name, base, ())
        elif instruction != "COMMENT":
            stage = stages[name]
            stages[name] = Stage(name, stage.base, (*stage.steps, (instruction, value)))
    return stages


STAGES = read_stages()
IMAGES = [stage for stage in STAGES.values() if any(name == "USER" for name, _ in stage.steps)]
SMALL_IMAGES = [image for image in IMAGES if image.name != "worker"]
"""The other one is worker-cpu with CUDA, several GB of it."""
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS: dict[str, Any] = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def compose_errors(path: Path) -> str:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "--output-format", "text", path],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode else ""


def test_dockerfile_is_lint_clean(tmp_path: Path) -> None:
    def lint(path: Path) -> int:
        return subprocess.run([BIN / "hadolint", path], stdout=sys.stderr).returncode

    assert lint(ROOT / "Dockerfile") == 0
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python\nRUN cd /tmp && apt-get install curl\n")
    assert lint(careless) != 0


def test_dockerfile_bases_are_pinned_or_stages() -> None:
    bases = {stage.base for stage in STAGES.values()} - set(STAGES)
    assert bases and all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w-]+", base) for base in bases), bases


def test_dockerfile_copies_files_that_exist_and_are_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in STAGES.values():
        for name, value in stage.steps:
            sources = value.split()[:-1] if name == "COPY" else []
            assert set(sources) <= sent
            assert all((ROOT / source).exists() for source in sources), sources


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_images_run_the_service_as_nobody_in_particular(image: Stage) -> None:
    assert int(image.last("USER")) >= 1000
    assert json.loads(image.last("ENTRYPOINT")) == ["darkroom"]
    assert json.loads(image.last("CMD")) == ["serve"]
    assert "/health/ready" in image.last("HEALTHCHECK")
    environment = assignments(STAGES["base"].last("ENV"))
    assert environment["DARKROOM_HOST"] == "0.0.0.0"
    assert environment["DARKROOM_DATA"] == image.last("VOLUME")
    assert image.last("EXPOSE") == str(Settings.model_fields["port"].default)


def test_the_image_for_gpus_is_the_other_with_more() -> None:
    """Only the other one is run by the slow test below."""
    gpu, cpu = (
        [step for step in STAGES[name].steps if step[0] not in ("ENV", "ARG") and "pip install --c" not in step[1]]
        for name in ("worker", "worker-cpu")
    )
    (compiler,) = [step for step in gpu if step not in cpu]
    assert "gcc" in compiler[1] and [step for step in gpu if step != compiler] == cpu
    extras = {
        n: re.findall(r"'\.\[(.*?)\]'", " ".join(v for _, v in STAGES[n].steps)) for n in ("worker", "worker-cpu")
    }
    assert extras == {"worker": ["tensorrt,worker,video"], "worker-cpu": ["worker,video"]}


def test_environment_names_are_settings() -> None:
    text = "".join((ROOT / name).read_text() for name in ("Dockerfile", "docker-compose.yml"))
    fields = {f"DARKROOM_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"DARKROOM_\w+", text)) <= fields


def test_compose_file_follows_the_specification(tmp_path: Path) -> None:
    assert compose_errors(ROOT / "docker-compose.yml") == ""
    careless = tmp_path / "docker-compose.yml"
    careless.write_text((ROOT / "docker-compose.yml").read_text().replace("healthcheck:", "health_check:"))
    assert "health_check" in compose_errors(careless)


def test_compose_file_fits_the_image() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in OURS.values():
        image = STAGES[service["build"]["target"]]
        arguments = {value.partition("=")[0] for name, value in image.steps if name == "ARG"}
        assert set(service["build"].get("args", ())) <= arguments
        assert any("/health/ready" in word for word in service["healthcheck"]["test"])
        assert service["image"] == f"darkroom:{version}" + {"api": "-api", "worker": "-cuda"}.get(image.name, "")
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
    server = OURS["api"]
    image = STAGES[server["build"]["target"]]
    assert server["ports"] == [f"127.0.0.1:{image.last('EXPOSE')}:{image.last('EXPOSE')}"]
    assert image.name == "api" and assignments(image.last("ENV"))["DARKROOM_WORKERS"] == "0", "it has no torch"
    assert {service["build"]["target"] for service in OURS.values() if "worker" in service["command"]} == {
        "worker",
        "worker-cpu",
    }


def test_compose_services_share_jobs_and_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the store that they share keeps what it has acknowledged."""
    for name, service in OURS.items():
        with monkeypatch.context() as inside:
            for key, value in service["environment"].items():
                inside.setenv(key, value)
            settings = Settings()
        assert settings.store_url == settings.bus_address == "redis://redis:6379/0"
        assert f"artifacts:{settings.artifacts_address}" in service["volumes"], name
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
    command = COMPOSE["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "always")
    assert options["--maxmemory-policy"] == "noeviction"


def test_compose_volumes_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_prometheus_scrapes_the_service() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    server, workers = config["scrape_configs"]
    assert server["metrics_path"] == workers["metrics_path"] == "/metrics"
    (target,) = server["static_configs"][0]["targets"]
    assert target == f"api:{STAGES['api'].last('EXPOSE')}"
    (found,) = workers["dns_sd_configs"]
    assert ["api", *found["names"]] == list(OURS)
    for name in found["names"]:
        assert OURS[name]["command"] == ["worker", "--metrics-port", str(found["port"])]


def test_every_dependency_is_pinned_once_and_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    for pin in pins:  # no ranges, no addresses, no "+cpu"
        assert pin.url is None and re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *sum(project["optional-dependencies"].values(), [])):
        wanted = Requirement(text)
        if wanted.name != project["name"]:
            pinned = versions[wanted.name.lower().replace("_", "-")]
            assert wanted.specifier.contains(pinned, prereleases=True), wanted


@pytest.fixture(scope="module")
def base_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshRoot]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "unshare", "chroot"))):
        pytest.skip("needs root, debootstrap, unshare and chroot")
    stage = STAGES["base"]
    root = bootstrap(tmp_path_factory.mktemp("base") / "root", stage.base.rpartition("-")[2])
    for instruction, value in stage.steps:
        root.apply(instruction, value)
    yield root
    root.remove()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("image", SMALL_IMAGES, ids=lambda image: image.name)
def test_commands_of_the_dockerfile_run_in_a_fresh_root(image: Stage, base_root: FreshRoot, tmp_path: Path) -> None:
    root = base_root.copy(tmp_path / "root")
    for instruction, value in image.steps:
        root.apply(instruction, value)
    entrypoint = shlex.join([*json.loads(image.last("ENTRYPOINT")), *json.loads(image.last("CMD"))])
    helped = root.run(f"{entrypoint} --help")
    assert helped.returncode == 0, helped.stdout
    assert root.run('test "$(id -u)" != 0 && touch probe').returncode == 0
    has_torch = root.run("python -c 'import torch'").returncode == 0
    assert has_torch == image.name.startswith("worker")
    root.remove()
