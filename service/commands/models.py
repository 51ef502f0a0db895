"""``darkroom models``: what is installed, whether it is whole, and how more comes here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.terminal import DataOption, failure, read_settings

if TYPE_CHECKING:
    from models.spec.model import ModelSpec

app = typer.Typer(help="Installed models.", no_args_is_help=True)

WANTED = ("model_index.json", "darkroom.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
UNWANTED = ("*.fp16.*", "*.non_ema.*", "*onnx*", "*openvino*", "*flax*")
"""The same weights once more, for others or in less precision."""


@app.command("list")
def list_models(data: DataOption = None) -> None:
    """List the installed models, the default one first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "task", "sizes", "steps", "guidance", "scheduler", "folder")
    for spec in _installed(data).values():
        sizes = ", ".join(f"{width}x{height}" for width, height in spec.sizes)
        row = (spec.name, spec.system.task, sizes, str(spec.steps), f"{spec.guidance:g}", spec.solver, str(spec.folder))
        table.add_row(*row)
    Console().print(table)


def _installed(data: object) -> dict[str, ModelSpec]:
    from service.settings import installed_models

    try:
        return installed_models(read_settings(data=data))
    except ValueError as error:
        raise failure(str(error)) from error


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Models; none: every installed one.")] = None,
    data: DataOption = None,
) -> None:
    """Load models, which compares every weight with what the network needs."""
    from rich.console import Console

    installed = _installed(data)
    unknown = [name for name in names or () if name not in installed]
    if unknown:
        raise failure(f"model {unknown[0]!r} is not installed; installed: {', '.join(installed) or 'none'}")
    faults = 0
    for name in names or installed:
        with Console(stderr=True).status(f"loading {name}"):
            fault = _fault(installed[name])
        faults += fault is not None
        typer.echo(f"{name}: {fault or 'whole'}")
    if faults:
        raise typer.Exit(1)


def _fault(spec: ModelSpec) -> str | None:
    """Why the model cannot be loaded."""
    from models.families import image_to_video, text_to_image

    load = image_to_video.load if spec.system.task == "image-to-video" else text_to_image.load
    try:
        load(spec.folder)
    except (OSError, KeyError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


@app.command()
def pull(
    repository: Annotated[str, typer.Argument(help="ORGANISATION/NAME on the Hugging Face hub.")],
    into: Annotated[Path | None, typer.Option(help="Folder of models; else the first of DARKROOM_MODELS.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    data: DataOption = None,
) -> None:
    """Download a model in diffusers' format. Read its licence before you serve it."""
    from models.spec.model import ModelSpec

    parent = into or next(iter(read_settings(data=data).models), None)
    if parent is None:
        raise failure("where to? Name a folder with --into, or in DARKROOM_MODELS")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise failure("this needs the worker extra: pip install 'darkroom[worker]'") from error
    folder = parent / repository.rpartition("/")[2]
    try:
        snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]
        )
        spec = ModelSpec.read(folder)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise failure(f"{repository}: {error}") from error
    typer.echo(f"{spec.name}: {spec.system.task}, in {folder}")


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="A model folder, a single file or an adapter.")]) -> None:
    """Say what weights are, what is missing, and what does not fit; reads headers only."""
    from rich.console import Console
    from rich.table import Table

    from models.inspection import inspect as look_at

    try:
        found = look_at(path)
    except ValueError as error:
        raise failure(str(error)) from error
    table = Table("part", "parameters", "stored as", "fault")
    for part in found.parts:
        table.add_row(part.name, f"{part.parameters:,}", ", ".join(part.dtypes), part.fault)
    typer.echo(
        f"{path}: {found.kind}, {found.system or 'of no published size'}, licence {found.licence or 'not stated'}"
    )
    Console().print(table)
    typer.echo(f"missing: {', '.join(found.missing)}" if found.missing else "nothing is missing")
    if any(part.fault for part in found.parts):
        raise typer.Exit(1)


@app.command()
def adopt(
    file: Annotated[Path, typer.Argument(help="A single file of a published system.")],
    folder: Annotated[Path, typer.Argument(help="Model folder to make around it.")],
    tokenizers: Annotated[Path, typer.Option(help="Model folder to copy the tokenizers from.")],
    system: Annotated[str | None, typer.Option(help="Name, where several have the same networks.")] = None,
) -> None:
    """Make a model folder around a single file, which stays where it is."""
    from models.adopt import adopt as make_folder

    try:
        made = make_folder(file, folder, tokenizers, system)
    except (OSError, ValueError) as error:
        raise failure(str(error)) from error
    typer.echo(f"{folder.name}: {made.name}, licence {made.licence}, in {folder}")
