"""``darkroom jobs``: what a server has done, does and will do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.terminal import KeyOption, ServerOption, connected, progress_bar, read_settings

if TYPE_CHECKING:
    import httpx

app = typer.Typer(help="Jobs of a server.", no_args_is_help=True)

POLL_S = 0.5
PROMPT_CHARS = 40
JobArgument = Annotated[str, typer.Argument(help="Id of a job.", metavar="ID")]


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only those queued, running, completed, failed, ...")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1, max=100)] = 20,
    after: Annotated[str | None, typer.Option(help="Id of the job after which to go on.")] = None,
    server: ServerOption = None,
    key: KeyOption = None,
) -> None:
    """List jobs, the newest first."""
    from rich.console import Console
    from rich.table import Table

    asked = {"state": state, "limit": limit, "after": after}
    with connected(server or read_settings().url, key) as client:
        page = _ask(client, "GET", "", {name: value for name, value in asked.items() if value is not None})
    table = Table("id", "state", "task", "model", "created", "step", "prompt")
    for job in page["data"]:
        request, progress = job["request"], job["progress"]
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["created_at"]))
        step = f"{progress['step']}/{progress['steps']}" if progress else ""
        prompt = request["prompt"] if len(request["prompt"]) <= PROMPT_CHARS else f"{request['prompt'][:PROMPT_CHARS]}…"
        table.add_row(job["id"], job["state"], request["task"], request["model"], created, step, prompt)
    Console().print(table)
    if page["has_more"]:
        typer.echo(f"There are more: --after {page['last_id']}")


@app.command()
def show(
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for its end first.")] = False,
    server: ServerOption = None,
    key: KeyOption = None,
) -> None:
    """Show all there is to know of a job, as JSON."""
    from rich.console import Console

    with connected(server or read_settings().url, key) as client:
        job = _ask(client, "GET", f"/{job_id}")
        if follow:
            job = _follow(client, job)
    Console().print_json(data=job)


@app.command()
def cancel(job_id: JobArgument, server: ServerOption = None, key: KeyOption = None) -> None:
    """End a job at its next step. One that has ended stays as it is."""
    with connected(server or read_settings().url, key) as client:
        job = _ask(client, "DELETE", f"/{job_id}")
    typer.echo(f"{job['id']} {job['state']}")


def _follow(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    with progress_bar() as bar:
        task = bar.add_task(job["state"], total=None)
        while job["state"] in ("queued", "running"):
            progress = job["progress"] or {"step": 0, "steps": None}
            bar.update(task, description=job["state"], completed=progress["step"], total=progress["steps"])
            time.sleep(POLL_S)
            job = _ask(client, "GET", f"/{job['id']}")
    return job


def _ask(client: httpx.Client, method: str, path: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    from service.client import read_answer

    return read_answer(client.request(method, f"/v1/jobs{path}", params=parameters))
