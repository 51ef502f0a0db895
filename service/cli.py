"""The ``darkroom`` command. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import train

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.settings import Settings

app = typer.Typer(help="Serve diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False)

engines_app = typer.Typer(help="Networks compiled for a back end.", no_args_is_help=True)
app.add_typer(engines_app, name="engines")
app.add_typer(train.app, name="train")

DataOption = Annotated[
    Path | None, typer.Option(help="Folder of jobs, pictures and engines.", envvar="DARKROOM_DATA", show_envvar=True)
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data: DataOption = None,
) -> None:
    """Serve the API, with one worker that is kept alive."""
    from service.api.serve import serve as run_server
    from service.errors import Unavailable
    from service.logs import configure_logging

    settings = _settings(host=host, port=port, data=data)
    configure_logging(settings.log_level)
    try:
        run_server(settings)
    except (Unavailable, ValueError) as error:
        raise _failure(str(error)) from error


@app.command()
def worker(
    data: DataOption = None,
    supervised: Annotated[bool, typer.Option(help="End when standard input ends.", hidden=True)] = False,
) -> None:
    """Run one worker. `darkroom serve` runs one by itself; each further one has a data folder of its own."""
    from service.logs import configure_logging
    from service.supervisor import exit_with_parent

    settings = _settings(data=data)
    configure_logging(settings.log_level)
    if supervised:
        exit_with_parent()
    from service.worker.process import run_worker

    run_worker(settings)


@app.command()
def models(data: DataOption = None) -> None:
    """List the installed models."""
    from rich.console import Console
    from rich.table import Table

    from service.settings import installed_models

    table = Table("model", "sizes", "steps", "guidance", "scheduler", "folder")
    try:
        specs = installed_models(_settings(data=data)).values()
    except ValueError as error:
        raise _failure(str(error)) from error
    for spec in specs:
        sizes = ", ".join(f"{width}x{height}" for width, height in spec.sizes)
        table.add_row(spec.name, sizes, str(spec.steps), f"{spec.guidance:g}", spec.solver, str(spec.folder))
    Console().print(table)


@engines_app.command("build")
def build_engines(
    model: Annotated[str | None, typer.Argument(help="Name of an installed model.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every installed model.")] = False,
    data: DataOption = None,
) -> None:
    """Export a model's networks for ONNX Runtime, so that the first start finds them."""
    from service.settings import installed_models

    if every == (model is not None):
        raise _failure("name one model, or say --all")
    settings = _settings(data=data)
    try:
        specs = installed_models(settings)
    except ValueError as error:
        raise _failure(str(error)) from error
    if model is not None and model not in specs:
        raise _failure(f"model {model!r} is not installed; installed: {', '.join(specs) or 'none'}")
    from rich.progress import track

    from engines.cache import EngineCache
    from engines.prepare import build

    for name in track([model] if model else list(specs), "engines"):
        for path in build(specs[name].folder, EngineCache(settings.engines_path)):
            typer.echo(f"{name}: {path}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    model: Annotated[str | None, typer.Option(help="Name of a model, or a model folder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same picture.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Name of a solver.")] = None,
    size: Annotated[str | None, typer.Option(help="WxH, one of the model's sizes.")] = None,
    negative: Annotated[str | None, typer.Option(help="What the picture does not show.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.", dir_okay=False)
    ] = None,
    server: Annotated[str | None, typer.Option(help="URL of a server; else the local one if it runs.")] = None,
    data: DataOption = None,
) -> None:
    """Make one picture: on the server if one runs, else in this process."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "model": model,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "scheduler": scheduler,
        "size": size,
        "negative_prompt": negative,
        "output_format": _format_of(output),
    }
    settings = _settings(data=data)
    folder = Path(model).expanduser() if model else None
    if folder is not None and (folder / "model_index.json").exists():
        if server:
            raise _failure("--model is a folder of this machine: a server has only its own; leave out one of the two")
        settings = settings.model_copy(update={"models": (*settings.models, folder.absolute())})
        body["model"] = folder.absolute().name
        content, name = _generate_here(settings, body)
    elif server or _answers(settings.url):
        content, name = _generate_there(server or settings.url, body)
    else:
        content, name = _generate_here(settings, body)
    path = output or Path(name)
    path.write_bytes(content)
    typer.echo(f"{path} ({len(content)} bytes)")


def _settings(**given: object) -> Settings:
    from pydantic import ValidationError

    from service.settings import Settings

    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r}" for e in error.errors())
        raise _failure(faults) from error


def _failure(message: str) -> typer.Exit:
    typer.echo(f"darkroom: {message}", err=True)
    return typer.Exit(1)


def _format_of(output: Path | None) -> str:
    suffix = output.suffix.lower() if output else ".png"
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if suffix not in formats:
        raise _failure(f"cannot write {suffix or 'a file without suffix'}; use one of {', '.join(formats)}")
    return formats[suffix]


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _answers(url: str) -> bool:
    import httpx

    try:
        return bool(httpx.get(f"{url}/health/live", timeout=1.0).json()["status"] == "live")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False


def _generate_here(settings: Settings, body: dict[str, Any]) -> tuple[bytes, str]:
    from pydantic import ValidationError

    from service.api.errors import explain
    from service.api.resolve import resolve
    from service.api.schema import JobRequest
    from service.errors import DarkroomError
    from service.settings import installed_models

    try:
        request = resolve(JobRequest(**body), installed_models(settings))
        from service.worker.local import generate as generate_local

        with _progress_bar() as bar:
            task = bar.add_task(request.model, total=request.num_inference_steps)
            content = generate_local(settings, request, lambda step, of: bar.update(task, completed=step, total=of))
    except ValidationError as error:
        raise _failure(explain(error.errors()).message) from error
    except DarkroomError as error:
        raise _failure(error.message) from error
    except ValueError as error:
        raise _failure(str(error)) from error
    return content, f"darkroom-{request.seed}.{request.output_format}"


def _generate_there(url: str, body: dict[str, Any]) -> tuple[bytes, str]:
    import httpx

    from service.client import ServerError, run_job

    try:
        with httpx.Client(base_url=url, timeout=60.0) as client, _progress_bar() as bar:
            task = bar.add_task("queued", total=None)
            job, content = run_job(
                client, body, lambda state, step, of: bar.update(task, description=state, completed=step, total=of)
            )
    except (httpx.HTTPError, ServerError) as error:
        raise _failure(f"{url}: {error}") from error
    return content, f"darkroom-{job['request']['seed']}.{job['request']['output_format']}"


if __name__ == "__main__":
    app()
