"""How long it takes to load a single file, and how much memory: ``python -m benchmarks.load_checkpoint``.

Darkroom and diffusers in turn, on the same file of a published system.
The file is synthetic: the exact keys and shapes in half precision, and zeros for values. Each load is a fresh process,
and reads every weight once behind it, since what is mapped has not been read yet.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.report import RESULTS, ROOT, Target, console, facts, load, print_rows, print_targets, save
from models.blank import blank_network, namings
from models.checkpoints.single_file import LAYOUTS
from models.checkpoints.stored import shapes
from models.checkpoints.systems import System, systems

MEMORY_TARGET, TIME_TARGET = 1.15, 1.0
TIMES = ("load_s", "ready_s", "processor_s")
FILE = "model.safetensors"


def write_synthetic(system: System, folder: Path) -> int:
    """Write a system's configs and one single file of its layout; the file's size in bytes."""
    for name, content in system.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    layout = next(layout for layout in LAYOUTS if layout.name == system.layout)
    tensors: dict[str, Tensor] = {}
    for part, config in system.parts.items():
        network = blank_network(config)
        naming = namings(network).in_single_file
        assert naming is not None
        for name, shape in shapes(network).items():
            source = naming(layout, part)(name)[0]
            stored = (3 * shape[0], *shape[1:]) if source.third is not None else shape
            tensors[source.name] = torch.zeros(stored[::-1] if source.transposed else stored, dtype=torch.float16)
    save_file(tensors, folder / FILE)
    with (folder / FILE).open("rb") as file:
        os.fsync(file.fileno())  # the disk is not to be busy with it while it is loaded
    return (folder / FILE).stat().st_size


def ours(folder: Path, system: System) -> list[nn.Module]:
    """All networks of the file, as the server loads them."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from models.encoders import load_encoder
    from models.weights import load_unet, load_vae

    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    towers = {part: config["architectures"][0] for part, config in system.parts.items() if "encoder" in part}
    return [
        load_unet(folder, torch.float16),
        load_vae(folder, torch.bfloat16),
        *(load_encoder(classes[name], folder / part, torch.float16) for part, name in towers.items()),
    ]


def theirs(folder: Path, system: System) -> list[nn.Module]:
    """The same through diffusers."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    options: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    unet = UNet2DConditionModel.from_single_file(
        str(folder / FILE), subfolder="unet", torch_dtype=torch.float16, **options
    )
    vae = AutoencoderKL.from_single_file(str(folder / FILE), subfolder="vae", torch_dtype=torch.bfloat16, **options)
    checkpoint = load_file(folder / FILE)
    towers = [
        create_diffusers_clip_model_from_ldm(
            getattr(transformers, config["architectures"][0]),
            checkpoint,
            subfolder=part,
            torch_dtype=torch.float16,
            **options,
        )
        for part, config in system.parts.items()
        if "encoder" in part
    ]
    return [unet, vae, *towers]


IMPORTED = (
    "diffusers.loaders.single_file_utils",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "models.encoders",
    "models.weights",
    "transformers.models.clip.modeling_clip",
)
LOADERS: dict[str, Callable[[Path, System], list[nn.Module]]] = {"darkroom": ours, "diffusers": theirs}


def child(who: str, folder: Path, system: System) -> None:
    """Load once in this process, and print what it took."""
    for name in IMPORTED:  # by neither inside of the time taken, nor in the memory
        import_module(name)
    resident = _peak_bytes()
    started, processor = time.perf_counter(), time.process_time()
    networks = LOADERS[who](folder, system)
    loaded = time.perf_counter()
    for network in networks:
        for parameter in network.parameters():
            parameter.view(torch.int16).amax()  # of all passes the one that takes least time and no memory
    taken = {
        "load_s": loaded - started,
        "ready_s": time.perf_counter() - started,
        "processor_s": time.process_time() - processor,
        "peak": _peak_bytes() - resident,
    }
    print(json.dumps(taken))


def _peak_bytes() -> int:
    """Of this program. What getrusage tells begins with the peak of whoever started it, which wrote the file."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(who: str, folder: Path, system: System) -> dict[str, float]:
    """One load in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.load_checkpoint", "--child", who, "--system", system.name]
    done = subprocess.run([*command, "--folder", str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def main(
    system: Annotated[str, typer.Option(help="Name of a published system.")] = "sdxl",
    pairs: Annotated[int, typer.Option(help="Loads of each that count; one more goes before them.", min=1)] = 9,
    folder: Annotated[Path | None, typer.Option(help="Where to write the file; else a temporary folder.")] = None,
    child_of: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
    out: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS / "load_checkpoint.json",
) -> None:
    """Load the same file again and again, ours and theirs in turn."""
    described = systems()[system]
    if child_of is not None and folder is not None:
        child(child_of, folder, described)
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        size = write_synthetic(described, place)
        console.print(f"{system}: {size / 1e9:.2f} GB")
        runs: list[dict[str, Any]] = []
        for i in range(pairs + 1):
            turns = list(LOADERS)[:: 1 if i % 2 else -1]
            taken = {who: measure(who, place, described) for who in turns}
            if i:
                runs.append({**taken, "load_before": load()})
    rows = [(who, *(_median(runs, who, key) for key in TIMES), _median(runs, who, "peak") / size) for who in LOADERS]
    ratio = statistics.median(run["darkroom"]["ready_s"] / run["diffusers"]["ready_s"] for run in runs)
    targets = [
        Target("peak memory, times the file", _median(runs, "darkroom", "peak") / size, MEMORY_TARGET, at_least=False),
        Target("time until every weight was read, times diffusers', median of pairs", ratio, TIME_TARGET, False),
    ]
    print_rows(f"Loading {system}", ("", "load s", "ready s", "processor s", "peak / file"), rows)
    print_targets(targets)
    about = {**facts(), "file_bytes": size, "runs": runs, "targets": [target.to_json() for target in targets]}
    save(out, system, about)


def _median(runs: list[dict[str, Any]], who: str, key: str) -> float:
    return statistics.median(run[who][key] for run in runs)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
