"""``darkroom generate``, ``upscale`` and ``animate``: one result, on the server if one runs. Pictures from text
are else made in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.terminal import (
    DataOption,
    KeyOption,
    ServerOption,
    answers,
    connected,
    failure,
    progress_bar,
    read_settings,
)

if TYPE_CHECKING:
    from service.settings import Settings

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

ModelOption = Annotated[str | None, typer.Option(help="Name of a model; else the first that can do it.")]
StepsOption = Annotated[int | None, typer.Option(help="Number of denoising steps.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed makes the same result.")]
SchedulerOption = Annotated[str | None, typer.Option(help="Name of a solver.")]
SizeOption = Annotated[str | None, typer.Option(help="WxH, one of the model's sizes.")]
PriorityOption = Annotated[str | None, typer.Option(help="interactive, standard or batch.")]
LoraOption = Annotated[list[str] | None, typer.Option(help="NAME or NAME:SCALE of an adapter; may be repeated.")]
PictureOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.", dir_okay=False)
]
GuidanceOption = Annotated[float | None, typer.Option(help="How closely to follow the prompt; 1 is off.")]
NegativeOption = Annotated[str | None, typer.Option(help="What the picture does not show.")]
PictureFile = typer.Option(help="Picture to begin from.", exists=True, dir_okay=False)
MaskFile = typer.Option(help="Where to paint anew: transparent or white.", exists=True, dir_okay=False)


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    model: Annotated[str | None, typer.Option(help="Name of a model, or a model folder.")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = None,
    scheduler: SchedulerOption = None,
    size: SizeOption = None,
    negative: NegativeOption = None,
    image: Annotated[Path | None, PictureFile] = None,
    mask: Annotated[Path | None, MaskFile] = None,
    strength: Annotated[float | None, typer.Option(help="How much of --image to replace, up to 1.")] = None,
    lora: LoraOption = None,
    priority: PriorityOption = None,
    output: PictureOutput = None,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Make one picture: from a prompt, or from a prompt and a picture."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "model": model,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "scheduler": scheduler,
        "size": size,
        "negative_prompt": negative,
        "image": _data_url(image),
        "mask": _data_url(mask),
        "strength": strength,
        "loras": [_adapter(text) for text in lora] if lora else None,
        "priority": priority,
        "output_format": _format_of(output),
    }
    settings = read_settings(data=data)
    folder = Path(model).expanduser() if model else None
    if folder is not None and (folder / "model_index.json").exists():
        if server:
            raise failure("--model is a folder of this machine: a server has only its own; leave out one of the two")
        settings = settings.model_copy(update={"models": (*settings.models, folder.absolute())})
        body["model"] = folder.absolute().name
        _write(output, *_here(settings, body))
    elif server or answers(settings.url):
        _write(output, *_there(server or settings.url, key, body))
    else:
        _write(output, *_here(settings, body))


def upscale(
    image: Annotated[Path, typer.Argument(help="Picture to enlarge.", exists=True, dir_okay=False)],
    prompt: Annotated[str | None, typer.Option(help="What the picture shows.")] = None,
    model: ModelOption = None,
    noise: Annotated[int | None, typer.Option(help="Noise level: the higher, the more is invented.")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: SeedOption = None,
    scheduler: SchedulerOption = None,
    negative: NegativeOption = None,
    priority: PriorityOption = None,
    output: PictureOutput = None,
    server: ServerOption = None,
    key: KeyOption = None,
) -> None:
    """Enlarge a picture, on a server."""
    body: dict[str, Any] = {
        "task": "upscaling",
        "model": model,
        "image": _data_url(image),
        "prompt": prompt,
        "noise_level": noise,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "scheduler": scheduler,
        "negative_prompt": negative,
        "priority": priority,
        "output_format": _format_of(output),
    }
    _write(output, *_there(_server(server), key, body))


def animate(
    image: Annotated[Path, typer.Argument(help="First frame: a picture.", exists=True, dir_okay=False)],
    model: ModelOption = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the clip.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second.")] = None,
    motion: Annotated[int | None, typer.Option(help="How much moves, 0 to 255.")] = None,
    noise: Annotated[float | None, typer.Option(help="Noise on the first frame: more of it frees the clip.")] = None,
    steps: StepsOption = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the last frame.")] = None,
    min_guidance: Annotated[float | None, typer.Option(help="Guidance of the first frame.")] = None,
    seed: SeedOption = None,
    scheduler: SchedulerOption = None,
    size: SizeOption = None,
    priority: PriorityOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write: .mp4.", dir_okay=False)] = None,
    server: ServerOption = None,
    key: KeyOption = None,
) -> None:
    """Make a clip from a picture, on a server."""
    if output is not None and output.suffix.lower() != ".mp4":
        raise failure(f"cannot write {output.suffix or 'a file without suffix'}; a clip is an .mp4")
    body: dict[str, Any] = {
        "task": "image-to-video",
        "model": model,
        "image": _data_url(image),
        "seconds": seconds,
        "fps": fps,
        "motion_bucket_id": motion,
        "noise_aug_strength": noise,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "min_guidance_scale": min_guidance,
        "seed": seed,
        "scheduler": scheduler,
        "size": size,
        "priority": priority,
    }
    _write(output, *_there(_server(server), key, body))


def _server(named: str | None) -> str:
    url = named or read_settings().url
    if named is None and not answers(url):
        raise failure(f"no server answers at {url}: start one with `darkroom serve`, or name another with --server")
    return url


def _write(output: Path | None, content: bytes, name: str) -> None:
    path = output or Path(name)
    path.write_bytes(content)
    typer.echo(f"{path} ({len(content)} bytes)")


def _format_of(output: Path | None) -> str:
    suffix = output.suffix.lower() if output else ".png"
    if suffix not in FORMATS:
        raise failure(f"cannot write {suffix or 'a file without suffix'}; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def _data_url(path: Path | None) -> str | None:
    import base64
    import mimetypes

    if path is None:
        return None
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _adapter(text: str) -> dict[str, Any]:
    name, colon, scale = text.rpartition(":")
    if not colon:
        return {"name": text}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise failure(f"--lora {text}: {scale!r} is not a number") from None


def _here(settings: Settings, body: dict[str, Any]) -> tuple[bytes, str]:
    """The picture and a name for its file, made in this process."""
    from pydantic import ValidationError

    from service.api.errors import explain
    from service.api.resolve import resolve
    from service.api.schema import JobRequest
    from service.errors import DarkroomError
    from service.settings import installed_models

    if body["image"] or body["loras"]:
        raise failure(f"--image and --lora need a server, and none answers at {settings.url}: `darkroom serve`")
    try:
        request = resolve(JobRequest(**body), installed_models(settings))
        if not settings.metadata:
            request = request.model_copy(update={"metadata": False})
        from service.worker.local import generate as generate_local

        with progress_bar() as bar:
            task = bar.add_task(request.model, total=request.num_inference_steps)
            content = generate_local(settings, request, lambda step, of: bar.update(task, completed=step, total=of))
    except ValidationError as error:
        raise failure(explain(error.errors()).message) from error
    except DarkroomError as error:
        raise failure(error.message) from error
    except ValueError as error:
        raise failure(str(error)) from error
    return content, f"darkroom-{request.seed}.{request.output_format}"


def _there(url: str, key: str | None, body: dict[str, Any]) -> tuple[bytes, str]:
    """The result and a name for its file, made by the server at ``url``."""
    from service.client import run_job

    with connected(url, key) as client, progress_bar() as bar:
        task = bar.add_task("queued", total=None)
        job, content = run_job(
            client, body, lambda state, step, of: bar.update(task, description=state, completed=step, total=of)
        )
    return content, f"darkroom-{job['request']['seed']}.{job['request']['output_format']}"
