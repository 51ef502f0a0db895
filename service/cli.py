"""The ``darkroom`` command. Whatever is slow to import is imported by the command that needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands import bench, doctor, engines, generate, jobs, models, train
from service.commands.terminal import DataOption, failure, read_settings

app = typer.Typer(help="Serve diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False)

app.command()(generate.generate)
app.command()(generate.upscale)
app.command()(generate.animate)
app.command()(doctor.doctor)
# What follows the benchmark's name is the benchmark's, options too.
app.command(context_settings={"allow_interspersed_args": False})(bench.bench)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(engines.app, name="engines")
app.add_typer(train.app, name="train")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data: DataOption = None,
) -> None:
    """Serve the API, with a worker that is kept alive; with DARKROOM_WORKERS=0 workers are started by themselves."""
    from service.api.serve import serve as run_server
    from service.errors import Unavailable
    from service.logs import configure_logging

    settings = read_settings(host=host, port=port, data=data)
    configure_logging(settings.log_level)
    try:
        run_server(settings)
    except (Unavailable, ValueError) as error:
        raise failure(str(error)) from error


@app.command()
def worker(
    data: DataOption = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /health/ready of this worker here.", min=1, max=65535)
    ] = None,
    supervised: Annotated[bool, typer.Option(help="End when standard input ends.", hidden=True)] = False,
) -> None:
    """Run one worker. `darkroom serve` runs one by itself; each further one has a data folder of its own."""
    from service.logs import configure_logging
    from service.supervisor import exit_with_parent

    settings = read_settings(data=data)
    configure_logging(settings.log_level)
    if supervised:
        exit_with_parent()
    if metrics_port is not None:
        from service.exporter import export

        try:
            export(settings.worker_status_path, settings.worker_metrics_path, settings.host, metrics_port)
        except OSError as error:
            raise failure(f"--metrics-port {metrics_port}: {error.strerror}") from error
    from service.worker.process import run_worker

    run_worker(settings)


if __name__ == "__main__":
    app()
