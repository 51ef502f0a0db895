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

    table = Table("model", "task", "sizes", "steps", "guidance", "scheduler", "licence", "folder")
    for spec in _installed(data).values():
        sizes = ", ".join(f"{width}x{height}" for width, height in spec.sizes)
        defaults = (str(spec.steps), f"{spec.guidance:g}", spec.solver)
        table.add_row(spec.name, spec.system.task, sizes, *defaults, spec.licence or "not stated", str(spec.folder))
    Console().print(table)


def _installed(data: object) -> dict[str, ModelSpec]:
    from service.settings import installed_models

    try:
        return installed_models(read_settings(data=data))
    except ValueError as error:
        raise failure(str(error)) from error


@app.command()
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Model folders, single files, adapters or names of installed models; none: all of these."),
    ] = None,
    load: Annotated[bool, typer.Option(help="Load model folders too, not only the headers of their files.")] = False,
    data: DataOption = None,
) -> None:
    """Say what weights are, what is missing, and what does not fit; ends with 1 if something does not."""
    installed = _installed(data)
    faults = 0
    for target in targets or installed:
        path = installed[target].folder if target in installed else Path(target)
        if not path.exists():
            raise failure(f"{target!r} is no path and not installed; installed: {', '.join(installed) or 'none'}")
        faults += not _report(target, path, load)
    if faults:
        raise typer.Exit(1)


def _report(name: str, path: Path, load: bool) -> bool:
    """Print what is known of one; whether nothing is wrong with it."""
    from rich.console import Console
    from rich.table import Table

    from models.inspection import inspect

    try:
        found = inspect(path)
    except (OSError, ValueError) as error:
        typer.echo(f"{name}: {error}")
        return False
    table = Table("part", "parameters", "stored as", "fault")
    for part in found.parts:
        table.add_row(part.name, f"{part.parameters:,}", ", ".join(part.dtypes), part.fault)
    system, licence = found.system or "of no published size", found.licence or "not stated"
    typer.echo(f"{name}: {found.kind}, {system}, licence {licence}")
    Console().print(table)
    typer.echo(f"missing: {', '.join(found.missing)}" if found.missing else "nothing is missing")
    fault = _fault(path) if load and path.is_dir() else None
    if fault is not None:
        typer.echo(f"{name} cannot be loaded: {fault}")
    return fault is None and not any(part.fault for part in found.parts)


def _fault(folder: Path) -> str | None:
    """Why the model cannot be loaded."""
    from models.families import image_to_video, text_to_image
    from models.spec.model import ModelSpec

    try:
        clips = ModelSpec.read(folder).system.task == "image-to-video"
        (image_to_video.load if clips else text_to_image.load)(folder)
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
