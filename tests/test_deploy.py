"""The container files are right as far as that can be said without an engine, and the pinned versions are whole."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One FROM of the Dockerfile with the (instruction, argument) pairs below it."""

    name: str
    base: str
    steps: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        return [value for name, value in self.steps if name == instruction][-1]


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


def assignments(value: str) -> dict[str, str]:
    """The pairs of one ENV or ARG instruction."""
    return dict(word.partition("=")[::2] for word in shlex.split(value))


STAGES = read_stages()
IMAGES = [stage for stage in STAGES.values() if any(name == "ENTRYPOINT" for name, _ in stage.steps)]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


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
    environment = assignments(STAGES[image.base].last("ENV"))
    assert environment["DARKROOM_HOST"] == "0.0.0.0"
    assert environment["DARKROOM_DATA"] == image.last("VOLUME")
    assert image.last("EXPOSE") == str(Settings.model_fields["port"].default)


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
    service = COMPOSE["services"]["darkroom"]
    image = STAGES[service["build"]["target"]]
    assert set(service["build"]["args"]) <= {value.partition("=")[0] for name, value in image.steps if name == "ARG"}
    assert any("/health/ready" in word for word in service["healthcheck"]["test"])
    assert service["ports"] == [f"127.0.0.1:{image.last('EXPOSE')}:{image.last('EXPOSE')}"]
    assert f"data:{image.last('VOLUME')}" in service["volumes"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert service["image"] == f"darkroom:{version}"


def test_compose_volumes_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def test_prometheus_scrapes_the_service() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    (target,) = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert name in COMPOSE["services"] and port == STAGES["worker-cpu"].last("EXPOSE")


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


# --- The commands of the Dockerfile, run one after the other in a fresh root -----------------------------------------


def host_pip_paths() -> set[Path]:
    """Files and folders that pip on this machine reads its packages and certificates from."""

    def pip_config(command: str) -> str:
        done = subprocess.run([sys.executable, "-m", "pip", "config", command], capture_output=True, text=True)
        return done.stdout

    said = [*re.findall(r"^\s+(/.*), exists: True", pip_config("debug"), re.MULTILINE)]
    said += re.findall(r"[^\s'\"=]+", pip_config("list"))
    said += [word for name, value in os.environ.items() if "CERT" in name or "CA_" in name for word in value.split()]
    paths = {Path(word.removeprefix("file://")) for word in said if word.removeprefix("file://").startswith("/")}
    # An index that is a folder links to files beside it.
    paths |= {Path(word.removeprefix("file://")).parent for word in said if word.startswith("file:///")}
    paths |= {Path("/etc/resolv.conf"), Path("/etc/hosts")}
    return {path for path in paths if path.exists() and path != Path("/")}


@dataclass
class FreshRoot:
    """A folder that is treated as a container is: the steps of a stage change it and its surroundings."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0"
    workdir: str = "/"

    def copy(self, folder: Path) -> FreshRoot:
        subprocess.run(["cp", "--archive", "--reflink=auto", self.folder, folder], check=True)
        return FreshRoot(folder, dict(self.environment), self.user, self.workdir)

    def remove(self) -> None:
        """Do not leave it to pytest, which keeps the folders of three runs."""
        subprocess.run(["rm", "--recursive", "--force", "--one-file-system", self.folder], check=True)

    def apply(self, instruction: str, value: str) -> None:
        if instruction in {"ENV", "ARG"}:
            pairs = {k: string.Template(v).safe_substitute(self.environment) for k, v in assignments(value).items()}
            self.environment |= (
                pairs if instruction == "ENV" else pairs | {k: os.environ.get(k, v) for k, v in pairs.items()}
            )
        elif instruction == "USER":
            self.user = value
        elif instruction == "WORKDIR":
            self.workdir = value
            self.inside(value).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self._copy(*value.split())
        elif instruction == "RUN":
            done = self.run(value)
            assert done.returncode == 0, f"RUN {value}\n{done.stdout[-4000:]}"

    def inside(self, path: str) -> Path:
        return self.folder / str(Path(self.workdir, path)).lstrip("/")

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        for source in (ROOT / name for name in sources):
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self.inside(target), dirs_exist_ok=True, ignore=ignore)
            else:
                shutil.copy(source, self.inside(target) / source.name if target.endswith("/") else self.inside(target))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one command line inside. The mounts live in a namespace of their own and end with the command."""
        script = ["set -e", f"mount -t proc proc {self.folder}/proc", f"mount --rbind /dev {self.folder}/dev"]
        for path in sorted(host_pip_paths()):
            inside = Path(f"{self.folder}{path}")
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.mkdir(exist_ok=True) if path.is_dir() else inside.touch()
            script.append(f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(inside))}")
        shell = f"cd {self.workdir} && {{ {command}\n}}"
        script.append(f"exec chroot --userspec={self.user} {self.folder} /bin/sh -c {shlex.quote(shell)}")
        host = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "CERT" in name}
        environment = host | {"HOME": os.environ["HOME"]} | self.environment
        return subprocess.run(
            ["unshare", "--mount", "--fork", "sh", "-c", "\n".join(script)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def bootstrap(folder: Path, suite: str) -> FreshRoot:
    """Debian with its own Python at the place where the official image has one."""
    packages = "--include=python3,python3-venv"
    command = ["debootstrap", "--variant=minbase", packages, suite, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        pytest.skip(f"debootstrap failed: {done.stdout[-500:]}")
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    return FreshRoot(folder, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})


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
@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
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
