"""The worker's stages on a GPU: the pictures of the CPU, the same bytes in every batch, graphs that change none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels.backend import chosen
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings
from service.worker.batch import Stage
from service.worker.clip import Clip
from service.worker.graphs import CudaCapture, Graphs
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from service.worker.opening import load_model
from service.worker.parking import Parking
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.placement import PRECISIONS, Placement
from service.worker.runner import Runner
from tests.support.rig import a_picture, make_clip, make_request
from tests.support.tiny_towers import write_tiny_svd

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

TORCH = Settings(backend="torch")
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
TOLERANCE = {"fp32": 1.0, "fp16": 4.0, "bf16": 8.0}
"""Mean difference to the CPU's fp32 picture, levels of 255. Convolutions in fp32 are TF32 on a GPU."""


def opened(folder: Path, device: torch.device = CUDA, precision: str = "bf16", graphs: bool = False) -> LoadedModel:
    settings = TORCH.model_copy(update={"graphs": graphs})
    return load_model(ModelSpec.read(folder), settings, Placement(device, PRECISIONS[precision]))


def ran(pieces: list[Piece], runner: Runner | None = None) -> list[NDArray[np.uint8]]:
    """The pixels of pieces that are batched with each other from end to end."""
    runner = runner or Runner()
    while pieces[0].pixels is None:
        runner.run(pieces[0].stage, pieces)
    return [piece.pixels for piece in pieces if piece.pixels is not None]


def pictures(loaded: LoadedModel, seeds: list[int], steps: int = 5) -> list[Piece]:
    requests = [make_request(seed=seed, num_inference_steps=steps, scheduler="euler-ancestral") for seed in seeds]
    return [Picture(request, request.seed, 0.0, loaded, loaded.strict) for request in requests]


def clip(loaded: LoadedModel, seed: int) -> list[Piece]:
    return [Clip(make_clip("a"), seed, 0.0, loaded, loaded.strict, Inputs(a_picture()))]


@pytest.fixture(scope="module")
def svd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video") / "tiny-svd"
    write_tiny_svd(folder)
    return folder


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_picture_is_about_that_of_the_cpu(sdxl_folder: Path, precision: str) -> None:
    (reference,) = ran(pictures(opened(sdxl_folder, CPU, "fp32"), [7]))
    near, far = ran(pictures(opened(sdxl_folder, precision=precision), [7, 8]))
    difference = abs(near.astype(int) - reference).mean()
    assert difference < TOLERANCE[precision]
    assert abs(far.astype(int) - reference).mean() > 3 * max(difference, 1.0)
    assert chosen(), "ops chose between kernels and torch"


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_a_clip_is_about_that_of_the_cpu(svd_folder: Path, precision: str) -> None:
    (reference,) = ran(clip(opened(svd_folder, CPU, "fp32"), 7))
    loaded = opened(svd_folder, precision=precision)
    (near,), (far,) = ran(clip(loaded, 7)), ran(clip(loaded, 8))
    difference = abs(near.astype(int) - reference).mean()
    assert difference < TOLERANCE[precision]
    assert abs(far.astype(int) - reference).mean() > 3 * max(difference, 1.0)


def test_a_strict_row_has_the_same_bytes_in_every_batch(sdxl_folder: Path) -> None:
    loaded = opened(sdxl_folder)
    together, alone = ran(pictures(loaded, [7, 8, 9, 10])), [ran(pictures(loaded, [seed]))[0] for seed in (7, 8, 9, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("seeds", [[7], [7, 8, 9]])
def test_graphs_change_no_byte(sdxl_folder: Path, seeds: list[int]) -> None:
    eager, graphed = opened(sdxl_folder), opened(sdxl_folder, graphs=True)
    assert graphed.graphs and not eager.graphs
    runner = Runner()
    for expected, got in zip(ran(pictures(eager, seeds)), ran(pictures(graphed, seeds), runner), strict=True):
        assert np.array_equal(expected, got)
    assert runner._graphs is not None and runner._graphs.held_bytes >= 0
    assert any(seen.graph is not None for seen in runner._graphs._seen.values()), "steps were captured"


@torch.inference_mode()
def test_a_replay_reads_what_it_is_given(sdxl_folder: Path) -> None:
    unet = opened(sdxl_folder).networks["denoiser"].get()["unet"]
    graphs, spec = Graphs(CudaCapture()), ModelSpec.read(sdxl_folder)
    assert spec.system.denoiser == "unet"
    width = unet.spec.vector_dim
    for seed in range(4):
        torch.manual_seed(seed)
        x, context = torch.randn(3, 4, 16, 16, device=CUDA), torch.randn(3, 20, 64, device=CUDA)
        inputs = (x, torch.full((3,), 500.0, device=CUDA), context, torch.randn(3, width, device=CUDA))
        filled = tuple(torch.cat([tensor, tensor[-1:]]) for tensor in inputs)
        assert torch.equal(graphs.over({"unet": unet}, "u", "u/1")["unet"](*inputs), unet(*filled)[:3])
    assert any(seen.graph is not None for seen in graphs._seen.values())


def test_a_parked_network_comes_back_with_its_bytes(sdxl_folder: Path) -> None:
    loaded, runner = opened(sdxl_folder, graphs=True), Runner()
    before = ran(pictures(loaded, [7]), runner)
    network = loaded.networks["denoiser"]
    held = torch.cuda.memory_allocated()
    network.leave()
    Parking(2**30).take([network])
    assert torch.cuda.memory_allocated() < held and network.parked_bytes > 0
    weights = [weight for module in network._place.parked.values() for weight in module.parameters()]
    assert all(weight.is_pinned() for weight in weights)
    after = ran(pictures(loaded, [7]), runner)
    assert np.array_equal(before[0], after[0]) and network._place.loads == 2


def test_memory_that_is_too_small_gives_the_graphs_back(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, runner, failed = opened(sdxl_folder, graphs=True), Runner(), list[bool]()
    pieces = pictures(loaded, [7])
    while pieces[0].stage is not Stage.DECODE:
        runner.run(pieces[0].stage, pieces)
    decode = Picture.decode

    def too_large(given: list[Picture]) -> None:
        if not failed:
            failed.append(True)
            torch.empty(2**50, dtype=torch.uint8, device=CUDA)
        decode(given)

    monkeypatch.setattr(Picture, "decode", too_large)
    assert runner._graphs is not None
    monkeypatch.setattr(Graphs, "held_bytes", property(lambda _: 1))
    runner.run(Stage.DECODE, pieces)
    assert pieces[0].pixels is not None and failed


@pytest.mark.parametrize("name", ["emoji-xl", "emoji-xl-turbo"])
def test_the_shipped_models_draw_on_a_gpu_what_they_draw_on_a_cpu(name: str) -> None:
    spec = ModelSpec.read(ZOO / name)
    width, height = spec.sizes[0]
    request = make_request(
        model=name, prompt="a red apple", width=width, height=height, num_inference_steps=spec.steps,
        guidance_scale=spec.guidance, scheduler=spec.solver,
    )  # fmt: skip

    def drawn(device: torch.device, precision: str, seed: int) -> NDArray[np.float64]:
        loaded = opened(ZOO / name, device, precision)
        piece = Picture(request.model_copy(update={"seed": seed}), seed, 0.0, loaded, loaded.strict)
        return ran([piece])[0].astype(float)

    reference = drawn(CPU, "fp32", 7)
    near, far = (abs(drawn(CUDA, "bf16", seed) - reference).mean() for seed in (7, 8))
    assert near < 10 and far > near
