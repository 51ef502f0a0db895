"""docs/operations.md, the example of an environment and the units of systemd say what the code does."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.cli import app
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FIELDS = set(Settings.model_fields)
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def documented() -> dict[str, str]:
    """Settings in the table of docs/operations.md, each with what stands under "default"."""
    rows = re.findall(r"^\| `([A-Z0-9_`, ]+)` \| (.*?) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    return {name.strip("` ").lower(): default for names, default in rows for name in names.split(",")}


def example() -> dict[str, str]:
    lines = re.findall(r"^#?(DARKROOM_\w+)=(.*)$", (ROOT / "deploy/env.example").read_text(), re.MULTILINE)
    return {name.removeprefix("DARKROOM_").lower(): value for name, value in lines}


def test_every_setting_is_documented_and_nothing_else() -> None:
    assert set(documented()) == FIELDS
    assert set(example()) == FIELDS


def test_the_example_holds_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied as it is, it changes nothing; and uncommented line by line, it does not either."""
    text = (ROOT / "deploy/env.example").read_text()
    assert all(not line or line.startswith("#") for line in text.splitlines())
    defaults = Settings()
    for name, value in example().items():
        if value:
            monkeypatch.setenv(f"DARKROOM_{name.upper()}", value)
    assert Settings() == defaults
    monkeypatch.setenv("DARKROOM_LEASE_S", "31")
    assert Settings() != defaults


def test_documented_defaults_are_the_defaults() -> None:
    for name, said in documented().items():
        shown = re.match(r"`([^`]*)`", said)
        if shown is not None:
            assert getattr(Settings(**{name: shown[1]}), name) == getattr(Settings(), name), name
        else:  # in words
            field = Settings.model_fields[name]
            assert field.default_factory is not None or not field.default, f"{name} is {field.default!r} by default"


def understood(command: list[str]) -> bool:
    """Whether there are such a command and such options; it is not run."""
    return CliRunner().invoke(app, [*command, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", [name for name, service in COMPOSE["services"].items() if "build" in service])
def test_commands_of_compose_are_commands(name: str) -> None:
    command = COMPOSE["services"][name]["command"]
    assert understood(command) and not understood([*command, "--nonsense"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_run_what_there_is(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    program, *command = shlex.split(parser["Service"]["ExecStart"].replace("%i", "1"))
    assert program == "/opt/darkroom/bin/darkroom"
    assert understood(command)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")

    def complaints(text: str) -> str:
        copy = tmp_path / unit.name.replace("@", "@1")
        copy.write_text(text.replace("/opt/darkroom/bin/darkroom", sys.executable))
        done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True)
        return "".join(line for line in done.stderr.splitlines(keepends=True) if copy.name in line)

    assert complaints(unit.read_text()) == ""
    assert "Restrat" in complaints(unit.read_text().replace("Restart=", "Restrat="))
