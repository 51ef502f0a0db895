"""Where networks run; and whole rows on a device that is not the CPU, without one.

Tensors of the stand-in have no memory, and an operation on one of them and one of the CPU raises: what is left on the
CPU is found, whatever the numbers would have been.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import backend
from kernels.backend import OPS, chosen, selected
from models.families import image_to_video, text_to_image
from models.families.row import Checkpoint, Row, advance, resume
from models.guidance import Guidance
from models.plan import make_plan
from models.spec.model import ModelSpec
from service.jobs.job import ImageToImage, ImageToVideo, Inpainting, PictureRequest
from service.settings import Settings
from service.worker import placement as module
from service.worker.clip import Clip
from service.worker.input import NO_INPUTS, Inputs
from service.worker.loaded import LoadedModel
from service.worker.numerics import strict_lanes
from service.worker.opening import load_model
from service.worker.picture import Picture
from service.worker.piece import Piece
from service.worker.placement import (
    Placement,
    finish_copies,
    host_limit,
    placement,
    set_up,
    set_up_loader,
    weights_limit,
)
from service.worker.runner import Runner
from tests.support.rig import a_picture, make_clip, make_request, make_upscaling
from tests.support.tiny_towers import write_tiny_svd, write_tiny_upscaler

ELSEWHERE = Placement(torch.device("meta"), torch.bfloat16)
TORCH = Settings(backend="torch", threads=1)


@pytest.fixture(scope="module")
def pictures(sdxl_folder: Path) -> LoadedModel:
    return loaded_elsewhere(sdxl_folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("video") / "tiny-svd"
    write_tiny_svd(folder)
    return loaded_elsewhere(folder)


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("upscaler") / "tiny-upscaler"
    write_tiny_upscaler(folder)
    return loaded_elsewhere(folder)


def loaded_elsewhere(folder: Path) -> LoadedModel:
    loaded = load_model(ModelSpec.read(folder), TORCH, ELSEWHERE)
    for network in loaded.networks.values():
        network.load()  # the libraries that read weights do not take the stand-in
    return loaded


@pytest.fixture(params=["torch", "kernels"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """A device that stands for a GPU, where ops run in torch or as kernels; and where what was decoded lay."""
    decoded: list[torch.device] = []

    def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
        decoded.append(pixels.device)
        channels, height, width = pixels.shape[-3:]
        return np.zeros((*pixels.shape[:-3], height, width, channels), dtype=np.uint8)

    for family in (text_to_image, image_to_video):
        monkeypatch.setattr(family, "to_uint8", to_uint8)
    as_kernels = request.param == "kernels"
    monkeypatch.setattr("kernels.backend.INTERPRETED", as_kernels)
    monkeypatch.setattr("kernels.launch.INTERPRETED", as_kernels)
    monkeypatch.setattr(backend, "_chosen", set())
    with selected(dict.fromkeys(OPS, "auto")), FakeTensorMode(allow_non_fake_inputs=True):
        yield decoded
    assert bool(chosen()) == as_kernels


def made(piece: Piece) -> Row:
    """The row of a piece that went all its way."""
    runner, devices = Runner(), set()
    while piece.pixels is None:
        runner.run(piece.stage, [piece])
        assert piece.row is not None
        devices.add(piece.row.state.device.type)
        assert piece.row.state.dtype == torch.float32
    assert devices == {"meta"}
    return piece.row


def picture(loaded: LoadedModel, request: PictureRequest, inputs: Inputs = NO_INPUTS) -> Picture:
    return Picture(request, request.seed, 0.0, loaded, loaded.strict, inputs)


def with_picture(kind: type[ImageToImage] | type[Inpainting], **more: object) -> PictureRequest:
    return kind.model_validate({**make_request().model_dump(exclude={"task"}), "image": "a", "strength": 0.6, **more})


@pytest.mark.parametrize("scheduler", ["euler-ancestral", "dpm++2m"])
def test_a_picture_never_touches_the_cpu(pictures: LoadedModel, elsewhere: list[torch.device], scheduler: str) -> None:
    row = made(picture(pictures, make_request(scheduler=scheduler, num_inference_steps=2, partial_images=1)))
    assert {condition.context.device.type for condition in row.conditions.values()} == {"meta"}
    assert {device.type for device in elsewhere} == {"meta"} and len(elsewhere) == 2, "a preview and the picture"


def test_nor_does_one_from_a_picture(pictures: LoadedModel, elsewhere: list[torch.device]) -> None:
    made(picture(pictures, with_picture(ImageToImage), Inputs(a_picture())))
    request = with_picture(Inpainting, mask="b")
    row = made(picture(pictures, request, Inputs(a_picture(), a_picture()[..., 0])))
    assert row.keep is not None and {row.keep.mask.device.type, row.keep.noise.device.type} == {"meta"}


def test_nor_does_an_enlarged_one(enlarging: LoadedModel, elsewhere: list[torch.device]) -> None:
    request = make_upscaling(num_inference_steps=1, width=44)
    row = made(picture(enlarging, request, Inputs(a_picture(size=(11, 16)))))
    assert {condition.vector.device.type for condition in row.conditions.values()} == {"meta"}


def test_nor_does_a_clip(clips: LoadedModel, elsewhere: list[torch.device]) -> None:
    request: ImageToVideo = make_clip("a", num_inference_steps=2, decode_chunk_size=2)
    made(Clip(request, 7, 0.0, clips, clips.strict, Inputs(a_picture())))
    assert {device.type for device in elsewhere} == {"meta"} and len(elsewhere) == 2, "two chunks"


def test_a_row_goes_on_from_the_cpu_with_rescaled_guidance(
    pictures: LoadedModel, elsewhere: list[torch.device]
) -> None:
    assert isinstance(pictures.model, text_to_image.TextToImageModel)
    plan = make_plan(pictures.model.schedule, "euler-ancestral", 3, Guidance(4.0, rescale=0.7))
    conditions = text_to_image.prepare(pictures.model, "a red cat", "", True, 32, 32)
    row = text_to_image.start_row(pictures.model, plan, conditions, 7, (32, 32))
    resumed = resume(row, Checkpoint(torch.zeros(row.state.shape), 1))
    with torch.inference_mode():
        advance(pictures.model.denoisers, [resumed])
    assert resumed.line == 2 and resumed.state.device.type == "meta"


def test_control_a_tensor_on_the_cpu_would_be_found(pictures: LoadedModel, elsewhere: list[torch.device]) -> None:
    on_cpu = replace(pictures, model=replace(pictures.model, device=torch.device("cpu")))
    with pytest.raises(RuntimeError, match="same device"):
        made(picture(on_cpu, make_request(num_inference_steps=1)))
    elsewhere.clear()
    made(picture(pictures, make_request(num_inference_steps=1)))


def test_half_precision_makes_about_the_same_picture(loaded: LoadedModel) -> None:
    cpu = Placement(torch.device("cpu"), torch.bfloat16)
    halved = load_model(loaded.model.spec, TORCH, cpu)
    assert halved.networks["denoiser"].size_bytes * 2 == loaded.networks["denoiser"].size_bytes
    assert halved.strict.id != loaded.strict.id
    assert halved.networks["decoder"].identity != loaded.networks["decoder"].identity

    def pixels(model: LoadedModel, seed: int) -> NDArray[np.float64]:
        piece, runner = picture(model, make_request(num_inference_steps=2, seed=seed)), Runner()
        while piece.pixels is None:
            runner.run(piece.stage, [piece])
        assert piece.row is not None and piece.row.state.dtype == torch.float32
        return piece.pixels.astype(float)

    reference = pixels(loaded, 7)
    near, far = (abs(pixels(halved, seed) - reference).mean() for seed in (7, 8))
    assert 0 < near < 8 and far > 3 * near


def test_the_networks_lie_where_and_as_they_are_wanted(pictures: LoadedModel) -> None:
    unet = pictures.networks["denoiser"].get()["unet"]
    assert {(weight.device.type, weight.dtype) for weight in unet.parameters()} == {("meta", torch.bfloat16)}
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    towers = pictures.networks["conditioner"].get().networks
    assert {weight.device.type for tower in towers for weight in tower.parameters()} == {"meta"}


def test_an_autoencoder_that_overflows_in_fp16_is_fp32() -> None:
    half = Placement(torch.device("meta"), torch.float16)
    assert (half.dtype_of(True), half.dtype_of(False)) == (torch.float32, torch.float16)
    assert ELSEWHERE.dtype_of(True) == torch.bfloat16


def test_a_strict_batch_is_as_large_as_fills_the_device(sdxl_folder: Path) -> None:
    small, cpu = ModelSpec.read(sdxl_folder), Placement(torch.device("cpu"), torch.float32)
    large = replace(small, sizes=((1024, 1024),))
    assert [strict_lanes(spec, place) for spec in (small, large) for place in (cpu, ELSEWHERE)] == [8, 8, 8, 2]


class Gpus:
    """What torch says of GPUs, with two of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        self.used: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
        self.streams: list[object] = []
        monkeypatch.setattr(torch.cuda, "set_device", self.used.append)
        monkeypatch.setattr(torch.cuda, "Stream", object)
        monkeypatch.setattr(torch.cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(module.torch.backends.cudnn, "version", lambda: 91000)


def test_without_a_gpu_networks_run_on_the_processor_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placement(Settings()) == placement(Settings(device="cpu")) == Placement(torch.device("cpu"), torch.float32)
    assert placement(Settings(precision="fp16")).dtype == torch.float16
    set_up_loader(placement(Settings()))
    finish_copies()
    with pytest.raises(ValueError, match="device is 'cuda', and torch sees 0"):
        placement(Settings(device="cuda"))


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, (9, 0))
    assert (
        placement(Settings()) == placement(Settings(device="cuda")) == Placement(torch.device("cuda:0"), torch.bfloat16)
    )
    second = placement(Settings(device="cuda:1", precision="fp32"))
    assert second == Placement(torch.device("cuda:1"), torch.float32)
    assert placement(Settings(device="cpu")).dtype == torch.float32
    with pytest.raises(ValueError, match="device is 'cuda:2', and torch sees 2"):
        placement(Settings(device="cuda:2"))
    set_up(second, Settings(threads=1))
    assert gpus.used == [second.device] and not gpus.streams, "steps run in the stream that everything runs in"
    set_up_loader(second)
    assert gpus.used == [second.device] * 2 and len(gpus.streams) == 1


def test_an_old_gpu_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, (7, 5))
    assert placement(Settings()).dtype == torch.float16


def test_bytes_depend_on_the_gpu_and_on_what_ops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, (9, 0))
    place = placement(Settings())
    first, other = place.runs_on, replace(place, device=torch.device("cuda:1")).runs_on
    with selected({}):
        set_up(place, Settings(threads=1, kernels="geglu=torch"))
        switched = place.runs_on
    assert first["device"] == "card 0/sm_90" and first == place.runs_on
    assert len({str(each) for each in (first, other, switched)}) == 3
    with selected({}), pytest.raises(ValueError, match="kernel 'gelu'"):
        set_up(place, Settings(threads=1, kernels="gelu=torch"))


def test_memory_for_networks() -> None:
    cpu = Placement(torch.device("cpu"), torch.float32)
    assert weights_limit(cpu, 5) == 5 and weights_limit(cpu, 0) > 2**28, "a share of the machine's"
    free = {"free": lambda _: (1000, 2000)}
    assert [weights_limit(ELSEWHERE, setting, **free) for setting in (0, 100, 900)] == [700, 100, 700]
    assert host_limit(cpu, 5) == 0 and host_limit(ELSEWHERE, 5) == 5 and host_limit(ELSEWHERE, None) > 2**20
