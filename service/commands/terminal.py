"""What the commands share: how they read settings, say what is wrong, and find a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

    from service.settings import Settings

DataOption = Annotated[
    Path | None, typer.Option(help="Folder of jobs, pictures and engines.", envvar="DARKROOM_DATA", show_envvar=True)
]
ServerOption = Annotated[str | None, typer.Option(help="URL of a server; else the local one.")]
KeyOption = Annotated[
    str | None, typer.Option(help="API key, where the server asks for one.", envvar="DARKROOM_API_KEY")
]

TIMEOUT_S = 60.0
"""Of one request of a command."""


def failure(message: str) -> typer.Exit:
    """Say what is wrong; to be raised."""
    typer.echo(f"darkroom: {message}", err=True)
    return typer.Exit(1)


def read_settings(**given: object) -> Settings:
    """The settings of the environment, and those ``given`` that are not None.

    Raises:
        typer.Exit: one of them is wrong, which has been said.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r}" for e in error.errors())
        raise failure(faults) from error


def progress_bar() -> Progress:
    """Steps done, of how many, and for how long; on stderr, and gone when it is over."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def answers(url: str) -> bool:
    """Whether a server of ours is there."""
    import httpx

    try:
        return bool(httpx.get(f"{url}/health/live", timeout=1.0).json()["status"] == "live")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False


@contextmanager
def connected(url: str, key: str | None) -> Iterator[httpx.Client]:
    """A client of the server at ``url``.

    Raises:
        typer.Exit: the server cannot be reached, or refuses; which has been said.
    """
    import httpx

    from service.client import ServerError

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S, headers=headers) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL, ServerError) as error:
        raise failure(f"{url}: {error}") from error
