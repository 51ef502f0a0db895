"""A folder in which the steps of a Dockerfile are run, for machines without a container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def assignments(value: str) -> dict[str, str]:
    """The pairs of one ENV or ARG instruction."""
    return dict(word.partition("=")[::2] for word in shlex.split(value))


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
