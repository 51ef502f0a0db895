"""``darkroom train``: one command for the data and one for each shipped model, all resumed where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make the shipped models from nothing. Needs the `train` extra, npm, and hours on a CPU.", no_args_is_help=True
)

WorkOption = Annotated[Path, typer.Option(help="Folder for artwork and checkpoints; what is there is resumed.")]
OutOption = Annotated[Path, typer.Option(help="Model folder to write.")]


@app.command()
def data(work: WorkOption) -> None:
    """Download the artwork, still and animated (about 800 MB), and render it."""
    from models.training.animations import render_animations
    from models.training.artwork import download, render
    from models.training.emoji_svd import PACKAGES

    with _faults_told():
        folder = work / "artwork"
        download(folder, PACKAGES)
        typer.echo(f"{len(render(folder))} drawings and {len(render_animations(folder))} animations in {folder}")


@app.command()
def emoji_xl(work: WorkOption, out: OutOption) -> None:
    """Train autoencoder, text towers and UNet of emoji-xl."""
    from models.training.emoji_xl import train_emoji_xl

    with _faults_told():
        train_emoji_xl(work, out)


@app.command()
def emoji_xl_turbo(
    work: WorkOption, out: OutOption, teacher: Annotated[Path, typer.Option(help="Model folder of the teacher.")]
) -> None:
    """Distil emoji-xl into a student of one to four steps."""
    from models.training.emoji_xl_turbo import train_emoji_xl_turbo

    with _faults_told():
        train_emoji_xl_turbo(work, teacher, out)


@app.command()
def emoji_svd(
    work: WorkOption, out: OutOption, image_model: Annotated[Path, typer.Option(help="Model folder of emoji-xl.")]
) -> None:
    """Train autoencoder, vision tower and video UNet of emoji-svd, in the latent space of emoji-xl."""
    from models.training.emoji_svd import train_emoji_svd

    with _faults_told():
        train_emoji_svd(work, image_model, out)


@contextmanager
def _faults_told() -> Iterator[None]:
    """What goes wrong as one line instead of a traceback."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(1) from error
