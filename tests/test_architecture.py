"""The repository is what its documents say: who imports whom, how large things are, what lies where."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "models", "kernels", "engines")
TOP_LEVEL = {
    *PACKAGES, "deploy", "tests", "benchmarks", "docs", ".ci",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt",
    "Dockerfile", "docker-compose.yml", ".dockerignore", ".gitignore", ".gitattributes",
}  # fmt: skip

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_FILE_BYTES = 16 * 2**20
MAX_HISTORY_BYTES = 240 * 2**20  # all versions of all files, uncompressed

# Modules without a test module of their own name, and what tests them instead.
TESTED_ELSEWHERE = {
    "service/errors.py": "names and numbers alone; every refused request in tests/service/api checks them",
    "models/mmdit_blocks.py": "test_mmdit.py in the same folder",
    "models/spec/rarm.py": "tests/models/test_rarm.py",
    "models/spec/config.py": "the specs beside it, which read everything through it",
    "models/unet_blocks.py": "test_unet.py in the same folder",
    "service/jobs/job.py": "plain data; every test of a store writes and reads it",
    "service/jobs/store.py": "a protocol; test_store_contract.py in the same folder runs it against each store",
}

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def git(*arguments: str, stdin: str | None = None) -> str:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, check=True)
    return done.stdout


def repository_files() -> list[Path]:
    """Every file that is in the repository, or would be with the next `git add`."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [Path(name) for name in sorted(set(filter(None, listed))) if (ROOT / name).is_file()]


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports; of `from a import b` it is `a.b`, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


def test_import_contracts_hold() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_imports_that_contracts_cannot_say(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    imported = list(imports(ast.parse(path.read_text())))
    if parts[0] == "kernels":
        allowed = {*sys.stdlib_module_names, "torch", "triton", "kernels"}
        assert {name.split(".")[0] for name in imported} <= allowed
    if parts[:2] == ("service", "api") or parts[0] == "service" and parts[-1] in {"settings", "errors", "metrics"}:
        models = [name for name in imported if name.split(".")[0] == "models"]
        assert all(name.split(".")[1] in {"spec", "plan"} for name in models), models


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_only_settings_read_the_environment(path: Path) -> None:
    if path != ROOT / "service" / "settings.py":
        assert not re.search(r"\bos\.(environ|getenv|putenv)\b|from os import .*\benviron\b", path.read_text())


def test_our_kernels_are_not_taken_for_the_package_of_that_name() -> None:
    # Both libraries probe for the import name `kernels`; in this folder it is ours. transformers even asks for the
    # version of whatever distribution owns it, so a release of ours within the range it looks for would break it.
    probe = (
        "import kernels, transformers.utils, diffusers.utils.import_utils as diffusers\n"
        "print(kernels.__file__, transformers.utils.is_kernels_available(), diffusers.is_kernels_available())"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "kernels" / "__init__.py"), "False", "False"]


def test_every_module_has_its_test() -> None:
    missing = {
        f"tests/{module.parent.as_posix()}/test_{module.name}"
        for module in (path.relative_to(ROOT) for path in MODULES)
        if module.as_posix() not in TESTED_ELSEWHERE
        and not (ROOT / "tests" / module.parent / f"test_{module.name}").exists()
    }
    assert not missing


def test_exceptions_from_that_rule_are_needed() -> None:
    for name, reason in TESTED_ELSEWHERE.items():
        module = Path(name)
        assert (ROOT / module).exists() and reason
        assert not (ROOT / "tests" / module.parent / f"test_{module.name}").exists(), f"{name} has its own test"


def test_top_level_holds_only_what_it_may() -> None:
    assert {path.parts[0] for path in repository_files()} <= TOP_LEVEL


def test_repository_is_small() -> None:
    large = [path for path in repository_files() if (ROOT / path).stat().st_size >= MAX_FILE_BYTES]
    assert not large
    objects = git("rev-list", "--objects", "--all")
    shas = "\n".join(line.split()[0] for line in objects.splitlines())
    described = git("cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=shas).splitlines()
    sizes = [int(size) for kind, size in map(str.split, described) if kind == "blob"]
    assert max(sizes, default=0) < MAX_FILE_BYTES
    assert sum(sizes) < MAX_HISTORY_BYTES


def layout_section() -> list[str]:
    """Lines of the listing under README's "## Layout"."""
    found = re.search(r"^## Layout\n.*?^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found, 'README.md has no listing under "## Layout"'
    return [line for line in found[1].splitlines() if line.strip()]


def test_readme_lists_what_is_there() -> None:
    listed, folder = set(), Path()
    for line in layout_section():
        name = Path(line.split()[0])
        if line[0].isspace():  # inside the folder above
            name = folder / name
        else:
            folder = name
        listed.add(name)
        assert (ROOT / name).exists(), f"README lists {name}"
    folders = {Path(path.parts[0]) for path in repository_files() if len(path.parts) > 1 and path.parts[0][0] != "."}
    assert folders <= listed
