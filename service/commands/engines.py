"""``darkroom engines``: what is compiled, compiling it ahead of time, and keeping the cache whole and small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.commands.terminal import DataOption, failure, read_settings

if TYPE_CHECKING:
    from engines.cache import EngineCache
    from engines.networks import Network
    from engines.verdict import Sample
    from models.spec.model import ModelSpec
    from service.settings import Settings

Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
Eight = Literal["int8", "fp8"]
PROMPTS = ("red apple, 3d", "blue car", "green tree, flat", "yellow star", "a cat", "rocket, 3d", "pizza", "umbrella")
"""What quality is measured on where nothing else is said."""

app = typer.Typer(help="Networks compiled for a back end.", no_args_is_help=True)


@app.command("list")
def list_engines(data: DataOption = None) -> None:
    """List the compiled networks, the one last used first."""
    from rich.console import Console
    from rich.table import Table

    from engines.refused import refusal_of

    table = Table("engine", "network", "precision", "format", "shapes", "architecture", "MiB", "last used", "refused")
    entries = _cache(read_settings(data=data)).entries()
    for entry in reversed(entries):
        key = entry.key
        facts = (key.network, key.precision, key.format, key.shapes, key.architecture) if key else ("damaged",) * 5
        used = datetime.fromtimestamp(entry.used_at).isoformat(" ", "minutes")
        refusal = refusal_of(entry.path)
        table.add_row(
            entry.path.name[:12], *facts, f"{entry.bytes / 2**20:.1f}", used, refusal.reason if refusal else ""
        )
    Console().print(table)
    typer.echo(f"{len(entries)} engines, {sum(entry.bytes for entry in entries) / 2**20:.0f} MiB")


@app.command()
def build(
    model: Annotated[str | None, typer.Argument(help="Name of an installed model, or a model folder.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every installed model.")] = False,
    backend: Annotated[Backend, typer.Option(help="What is to run them.")] = "onnxruntime",
    precision: Annotated[Precision, typer.Option(help="Of weights and arithmetic.")] = "fp32",
    network: Annotated[
        list[str] | None, typer.Option(help="Such as unet or vae/decoder; none: all that are served so.")
    ] = None,
    lanes: Annotated[list[int] | None, typer.Option(help="Batch sizes of a TensorRT plan, one or two.", min=1)] = None,
    size: Annotated[str | None, typer.Option(help="WxH of a TensorRT plan; none: the model's native size.")] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(help="sm80, sm89, ... of tensorrt-rtx; none: its default list.")
    ] = None,
    streaming: Annotated[bool, typer.Option(help="Let TensorRT keep weights in host memory.")] = False,
    data: DataOption = None,
) -> None:
    """Compile a model's networks, so that the first start finds them. What its card wants in 8 bits gets its scales
    from pictures that are drawn for them."""
    from engines.refused import allow

    if every == (model is not None):
        raise failure("name one model, or say --all")
    settings = read_settings(data=data)
    try:
        specs = _models(settings, model)
        make = _maker(settings, precision, backend, tuple(lanes or [2]), size, tuple(architecture or ()), streaming)
        for spec in specs:
            for one in _chosen(spec, network, backend):
                path = make(one, spec)
                allow(path.parent)  # who builds it by hand wants it, whatever was found against it
                typer.echo(f"{spec.name} {one.name}: {path}")
    except (ValueError, RuntimeError) as error:
        raise failure(str(error)) from error


def _maker(
    settings: Settings,
    precision: Precision,
    backend: Backend,
    lanes: tuple[int, ...],
    size: str | None,
    architectures: tuple[str, ...],
    streaming: bool,
) -> Callable[[Network, ModelSpec], Path]:
    """What makes one network of a model ready for a back end, and returns its file."""
    from engines.networks import bucket
    from engines.openvino_maker import build_openvino
    from engines.plan import PlanOptions
    from engines.prepare import build_network_plan, build_served

    cache = _cache(settings)
    if backend == "openvino" and precision != "fp32":
        raise ValueError(f"--precision {precision}: networks run in fp32 on OpenVINO")

    def make(network: Network, spec: ModelSpec) -> Path:
        if backend == "openvino":
            return build_openvino(network, cache)
        samples = _samples(network, spec, cache, precision, settings.threads)
        if backend == "onnxruntime":
            return build_served(network, cache, precision, samples)
        width, height = _size(size) if size else spec.sizes[0]
        buckets = tuple(bucket(network, spec, count, width, height) for count in lanes)
        options = PlanOptions(backend, buckets, architectures, streaming)
        return build_network_plan(network, cache, precision, options, samples)

    return make


def _samples(
    network: Network, spec: ModelSpec, cache: EngineCache, precision: Precision, threads: int
) -> Sequence[Sample]:
    """Inputs for the scales of a network that is to be in 8 bits and is not there yet."""
    from engines.prepare import find_graph
    from engines.quality import drawn

    if network.eight is None or find_graph(network, cache, precision) is not None:
        return ()
    return drawn(spec.folder, cache, [network.name], PROMPTS, threads)[network.name]


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="Name of an installed model that draws from text, or its folder.")],
    denoiser: Annotated[Eight | None, typer.Option(help="Of the denoiser.")] = None,
    decoder: Annotated[Eight | None, typer.Option(help="Of the autoencoder's decoder.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="One picture each; once more for every picture.")] = None,
    data: DataOption = None,
) -> None:
    """Measure what 8 bits cost: the same pictures in fp32 and with quantised networks, on ONNX Runtime. Without options
    of those that the model's card names.

    Scales come from other seeds of the same prompts. Half a minute, where the engines are compiled.
    """
    from tempfile import TemporaryDirectory

    import torch

    from engines.quality import measure

    settings = read_settings(data=data)
    torch.set_num_threads(settings.threads)
    try:
        (spec,) = _models(settings, model)
        card = spec.eight_bits if denoiser is decoder is None else {}
        kinds = {
            spec.system.denoiser: denoiser or card.get(spec.system.denoiser),
            "vae/decoder": decoder or card.get("vae"),
        }
        chosen = {name: kind for name, kind in kinds.items() if kind is not None}
        if not chosen:
            raise ValueError("say --denoiser or --decoder, since the model's card asks for neither in 8 bits")
        with TemporaryDirectory() as folder:
            found = measure(spec.folder, _cache(settings), chosen, prompt or PROMPTS, Path(folder), settings.threads)
    except (ValueError, RuntimeError) as error:
        raise failure(str(error)) from error
    said = ", ".join(f"{name} in {kind}" for name, kind in chosen.items())
    typer.echo(
        f"{spec.name}, {said}: {found.psnr_db:.1f} dB, {found.levels:.2f} of 255 levels apart; "
        f"{found.seconds_ratio:.2f} of the time, {found.bytes_ratio:.2f} of the size"
    )


@app.command()
def check(data: DataOption = None) -> None:
    """Read every compiled network and compare it with its checksum. A damaged one is built again when it is needed."""
    damaged = 0
    for entry in _cache(read_settings(data=data)).entries():
        intact = entry.intact
        damaged += not intact
        name = entry.key.network if entry.key else "unknown"
        typer.echo(f"{entry.path.name[:12]} {name}: {'intact' if intact else 'damaged'}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    max_mib: Annotated[int, typer.Option(help="Delete those least recently used until no more is left.", min=0)],
    data: DataOption = None,
) -> None:
    """Make the cache smaller. What was used within the last minute stays."""
    gone = _cache(read_settings(data=data)).prune(max_mib * 2**20)
    for entry in gone:
        typer.echo(f"{entry.path.name[:12]} {entry.key.network if entry.key else 'unknown'}: deleted")
    typer.echo(f"{len(gone)} engines, {sum(entry.bytes for entry in gone) / 2**20:.0f} MiB")


def _cache(settings: Settings) -> EngineCache:
    from engines.cache import EngineCache

    return EngineCache(settings.engines_path, settings.engines_bytes)


def _models(settings: Settings, name: str | None) -> list[ModelSpec]:
    """The model of this name or folder; every installed one for None."""
    from models.spec.model import ModelSpec
    from service.settings import installed_models

    specs = installed_models(settings)
    if name is None:
        return list(specs.values())
    if name not in specs and (Path(name).expanduser() / "model_index.json").exists():
        return [ModelSpec.read(Path(name).expanduser().absolute())]
    if name not in specs:
        raise ValueError(f"model {name!r} is not installed; installed: {', '.join(specs) or 'none'}")
    return [specs[name]]


def _chosen(spec: ModelSpec, names: Sequence[str] | None, backend: Backend) -> list[Network]:
    """Those of these names; else all that are served by this back end. With TensorRT text and vision towers run on
    torch."""
    from engines.networks import networks_of, runs_as_engine

    networks = networks_of(spec.folder)
    unknown = [name for name in names or () if name not in networks]
    if unknown:
        raise ValueError(f"network {unknown[0]!r} is not in {spec.name}, which has {', '.join(networks)}")
    if names:
        return [one for one in networks.values() if one.name in names]
    beside = "tensorrt" not in backend
    return [one for one in networks.values() if runs_as_engine(one) and (beside or not one.is_tower)]


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--size {text!r}, expected WIDTHxHEIGHT in pixels")
    return int(width), int(height)
