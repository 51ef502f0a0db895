"""``darkroom train``: one command for the data and one for each shipped model, all resumed where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from models.training.profile import Profile

app = typer.Typer(
    help="Make the shipped models from nothing. Needs the `train` extra, npm, and hours on a CPU.", no_args_is_help=True
)

ProfileChoice = Literal["small", "full"]

WorkOption = Annotated[Path, typer.Option(help="Folder for artwork and checkpoints; what is there is resumed.")]
ProfileOption = Annotated[
    ProfileChoice, typer.Option(help="`small`: hours on a CPU; `full`: more of everything, on a GPU.")
]
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
def emoji_xl(work: WorkOption, out: OutOption, profile: ProfileOption = "small") -> None:
    """Train autoencoder, text towers and UNet of emoji-xl."""
    from models.training.emoji_xl import train_emoji_xl

    with _faults_told():
        train_emoji_xl(work, out, _checked(profile))


@app.command()
def emoji_xl_turbo(
    work: WorkOption,
    out: OutOption,
    teacher: Annotated[Path, typer.Option(help="Model folder of the teacher.")],
    profile: ProfileOption = "small",
) -> None:
    """Distil emoji-xl into a student of one to four steps."""
    from models.training.emoji_xl_turbo import train_emoji_xl_turbo

    with _faults_told():
        train_emoji_xl_turbo(work, teacher, out, _checked(profile))


@app.command()
def emoji_svd(
    work: WorkOption,
    out: OutOption,
    image_model: Annotated[Path, typer.Option(help="Model folder of emoji-xl.")],
    profile: ProfileOption = "small",
) -> None:
    """Train autoencoder, vision tower and video UNet of emoji-svd, in the latent space of emoji-xl."""
    from models.training.emoji_svd import train_emoji_svd

    with _faults_told():
        train_emoji_svd(work, image_model, out, _checked(profile))


def _checked(name: ProfileChoice) -> Profile:
    """The profile of that name, if it can be trained here."""
    from models.training.profile import PROFILES

    profile = PROFILES[name]
    profile.check()
    return profile


@contextmanager
def _faults_told() -> Iterator[None]:
    """What goes wrong as one line instead of a traceback."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(1) from error
