"""Models with adapters in their weights: each set's own pictures, never another's, and the plain model as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from models.adapters.file import read_adapter
from models.adapters.fuse import Fusible, Weighted
from models.adapters.whole import AdapterSet
from models.encoders import load_encoder
from models.spec.model import ModelSpec
from models.weights import WEIGHTS, load_unet
from service.jobs.job import Adapter, JobState
from service.settings import Settings
from service.worker import checkpoints, local, loop
from service.worker.adapted import AdaptedModels, AdapterUnusable
from service.worker.clip import Clip
from service.worker.input import Inputs
from service.worker.loaded import LoadedModel
from service.worker.opening import load_model
from service.worker.runner import Runner
from tests.support.adapters import low_rank, write_kohya, write_peft
from tests.support.rig import Rig, a_picture, alone, denoised, make_clip, make_request
from tests.support.tiny_towers import write_tiny_svd

TORCH = Settings(backend="torch", threads=1)
INK, WOOL = Adapter(name="ink", scale=0.8), Adapter(name="wool", scale=-0.5)


def attention(network: nn.Module) -> list[str]:
    """Layers whose weights adapters usually change."""
    endings = ("to_q.weight", "to_v.weight", "q_proj.weight")
    return [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(endings)]


@pytest.fixture(scope="module")
def shelf(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters: ``ink`` changes the UNet, ``wool`` the UNet and the first text encoder."""
    folder, unet = tmp_path_factory.mktemp("loras"), load_unet(sdxl_folder)
    tower = load_encoder(CLIPTextModel, sdxl_folder / "text_encoder")
    write_peft(folder / "ink.safetensors", low_rank(unet, attention(unet), 1), "unet.")
    write_kohya(folder / "wool.safetensors", low_rank(tower, attention(tower), 2), "lora_te1_")
    text = load_file(folder / "wool.safetensors")
    write_kohya(folder / "wool.safetensors", low_rank(unet, attention(unet), 3), "lora_unet_")
    save_file({**load_file(folder / "wool.safetensors"), **text}, folder / "wool.safetensors")
    return folder


def adapted_from(folder: Path) -> AdaptedModels:
    def load(spec: ModelSpec, adapters: AdapterSet) -> LoadedModel:
        return load_model(spec, TORCH, adapters=adapters)

    return AdaptedModels(load, lambda: {path.stem: path for path in folder.glob("*.safetensors")})


@pytest.fixture
def adapted(shelf: Path) -> AdaptedModels:
    return adapted_from(shelf)


@pytest.fixture
def busy(tmp_path: Path, loaded: LoadedModel, adapted: AdaptedModels, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.01)
    rig = Rig(tmp_path, loaded, adapted=adapted)
    yield rig
    rig.close()


def carrying(network: nn.Module, folder: Path, adapters: list[Weighted]) -> dict[str, Tensor]:
    Fusible(network, folder).carry(adapters)
    return network.state_dict()


def latent(loaded: LoadedModel, **changes: Any) -> Tensor:
    """What one step makes."""
    row = denoised(loaded, make_request(num_inference_steps=1, **changes), 7).row
    assert row is not None
    return row.state


def test_a_picture_with_a_set_is_that_of_the_fused_networks(
    sdxl_folder: Path, shelf: Path, adapted: AdaptedModels, loaded: LoadedModel, tmp_path: Path
) -> None:
    chosen = [Weighted(read_adapter(shelf / f"{one.name}.safetensors"), one.scale) for one in (INK, WOOL)]
    folder = shutil.copytree(sdxl_folder, tmp_path / "tiny-xl")
    save_file(carrying(load_unet(sdxl_folder), sdxl_folder / "unet", chosen), folder / "unet" / WEIGHTS)
    tower = load_encoder(CLIPTextModel, sdxl_folder / "text_encoder")
    fused_tower = carrying(tower, sdxl_folder / "text_encoder", chosen)
    save_file(fused_tower, folder / "text_encoder" / "model.safetensors")
    fused, spec = load_model(ModelSpec.read(folder), TORCH), ModelSpec.read(sdxl_folder)
    both = adapted.open(spec, (WOOL, INK))
    made = latent(both)
    assert torch.equal(made, latent(fused))
    controls = [latent(loaded), latent(adapted.open(spec, (INK,))), latent(adapted.open(spec, (WOOL,)))]
    assert not any(torch.equal(made, control) for control in controls)
    context = both.model.conditioner.encode("a red cat", 32, 32).context
    assert not torch.equal(context, loaded.model.conditioner.encode("a red cat", 32, 32).context)


def test_what_a_set_does_not_change_is_shared(sdxl_folder: Path, adapted: AdaptedModels, loaded: LoadedModel) -> None:
    def own(opened: LoadedModel) -> set[str]:
        return {role for role, n in opened.networks.items() if n.identity != loaded.networks[role].identity}

    spec = ModelSpec.read(sdxl_folder)
    ink, wool, both = (adapted.open(spec, chosen) for chosen in ((INK,), (WOOL,), (INK, WOOL)))
    assert own(ink) == {"denoiser"} and own(wool) == own(both) == {"conditioner", "denoiser"}
    stronger = adapted.open(spec, (Adapter(name="ink", scale=0.9),))
    ids = [opened.numerics(strict).id for opened in (loaded, ink, wool, both, stronger) for strict in (True, False)]
    assert len(set(ids)) == len(ids)
    again = adapted.open(spec, (WOOL, INK))
    assert again.strict == both.strict and {n.identity for n in again.networks.values()} == {
        n.identity for n in both.networks.values()
    }
    assert both.networks["denoiser"].size_bytes == loaded.networks["denoiser"].size_bytes


def test_sets_that_run_at_once_never_mix(busy: Rig, adapted: AdaptedModels, sdxl_folder: Path) -> None:
    unet: Any = busy.unet.network
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    spec, sets = ModelSpec.read(sdxl_folder), [(), (INK,), (WOOL,), (INK, WOOL)]
    jobs = [busy.submit(loras=sets[i % 4], seed=i, num_inference_steps=2 + i % 2) for i in range(6)]
    busy.finish(*jobs)
    opened = {loras: adapted.open(spec, loras) if loras else busy.loaded for loras in sets}
    made = [busy.contents(job) for job in jobs]
    assert made == [alone(opened[job.request.loras], job.request) for job in jobs]  # type: ignore[arg-type]
    assert made[1] != alone(opened[(WOOL,)], jobs[1].request), "the sets differ"  # type: ignore[arg-type]
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


def test_a_job_with_a_set_goes_on_where_the_lost_worker_was(
    busy: Rig, adapted: AdaptedModels, sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e9)
    job = busy.submit(num_inference_steps=10, loras=(INK,))
    busy.tick_until(lambda: busy.value("darkroom_checkpoints_total", outcome="written") >= 3)
    busy.lose_worker()
    assert busy.get(job).state is JobState.QUEUED
    busy.finish(job)
    assert busy.value("darkroom_resumed_steps_total") >= 1
    opened = adapted.open(ModelSpec.read(sdxl_folder), (INK,))
    assert busy.contents(job) == alone(opened, job.request)  # type: ignore[arg-type]


def test_a_clip(tmp_path: Path) -> None:
    write_tiny_svd(tmp_path / "tiny-svd")
    spec, unet = ModelSpec.read(tmp_path / "tiny-svd"), load_unet(tmp_path / "tiny-svd")
    temporal = [layer for layer in attention(unet) if "temporal" in layer]
    write_peft(tmp_path / "pan.safetensors", low_rank(unet, temporal, 1), "unet.")
    request = make_clip(loras=(Adapter(name="pan", scale=0.5),))

    def state(loaded: LoadedModel) -> Tensor:
        clip, runner = Clip(request, 7, 0.0, loaded, loaded.strict, Inputs(a_picture())), Runner()
        runner.encode([clip])
        runner.denoise([clip])
        assert clip.row is not None and clip.key.adapters == request.loras
        return clip.row.state

    plain, opened = load_model(spec, TORCH), adapted_from(tmp_path).open(spec, request.loras)
    carrying(plain.model.denoisers["unet"], tmp_path / "tiny-svd" / "unet", [])  # type: ignore[arg-type]
    without = state(plain)
    chosen = [Weighted(read_adapter(tmp_path / "pan.safetensors"), 0.5)]
    carrying(plain.model.denoisers["unet"], tmp_path / "tiny-svd" / "unet", chosen)  # type: ignore[arg-type]
    assert torch.equal(state(opened), state(plain)) and not torch.equal(state(opened), without)


def _ill_fitting(file: Path, good: dict[str, Tensor]) -> None:
    name = next(name for name in good if name.endswith("lora_A.weight"))
    save_file({**good, name: good[name][:, :-1].contiguous()}, file)


FAULTS: dict[str, tuple[Callable[[Path, dict[str, Tensor]], object], str]] = {
    "missing": (lambda _file, _good: None, "adapter 'bad' is not installed; installed: ink"),
    "garbage": (lambda file, _good: file.write_bytes(b"garbage"), "bad.safetensors"),
    "of other shapes": (_ill_fitting, "does not fit this network"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_used(sdxl_folder: Path, shelf: Path, tmp_path: Path, fault: str) -> None:
    shutil.copy(shelf / "ink.safetensors", tmp_path)
    make, said = FAULTS[fault]
    make(tmp_path / "bad.safetensors", load_file(shelf / "ink.safetensors"))
    models, spec = adapted_from(tmp_path), ModelSpec.read(sdxl_folder)
    with pytest.raises(AdapterUnusable, match=said) as error:
        models.open(spec, (INK, Adapter(name="bad")))
    assert str(tmp_path) not in str(error.value), "clients need not know where"
    assert models.open(spec, (INK,)).strict.id


def test_a_job_with_an_unusable_adapter_fails_alone(busy: Rig, shelf: Path) -> None:
    bad, good = busy.submit(loras=(Adapter(name="bad"),)), busy.submit(loras=(INK,))
    busy.finish(bad, good)
    error = busy.get(bad).error
    assert error is not None and error.code == "adapter_unusable" and "'bad' is not installed" in error.message
    assert busy.get(good).state is JobState.COMPLETED


def test_a_file_that_is_replaced_is_another_adapter(sdxl_folder: Path, shelf: Path, tmp_path: Path) -> None:
    shutil.copy(shelf / "wool.safetensors", tmp_path / "ink.safetensors")
    models, spec = adapted_from(tmp_path), ModelSpec.read(sdxl_folder)
    before, first = models.version((INK,)), models.open(spec, (INK,))
    shutil.copy(shelf / "ink.safetensors", tmp_path / "ink.safetensors")
    second = models.open(spec, (INK,))
    assert models.version((INK,)) != before and second.strict.id != first.strict.id
    with pytest.raises(Exception, match="changed on disk"):
        first.networks["denoiser"].get()
    assert torch.equal(latent(second), latent(adapted_from(shelf).open(spec, (INK,))))


def test_a_model_that_is_replaced_is_read_anew(sdxl_folder: Path, adapted: AdaptedModels, tmp_path: Path) -> None:
    shutil.copytree(sdxl_folder, tmp_path / sdxl_folder.name)
    before = adapted.open(ModelSpec.read(tmp_path / sdxl_folder.name), (INK,))
    weights = tmp_path / sdxl_folder.name / "unet" / WEIGHTS
    save_file({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    after = adapted.open(ModelSpec.read(tmp_path / sdxl_folder.name), (INK,))
    assert before.strict.id != after.strict.id
    assert before.networks["denoiser"].identity != after.networks["denoiser"].identity


def test_without_a_server(sdxl_folder: Path, shelf: Path, loaded: LoadedModel, adapted: AdaptedModels) -> None:
    settings = Settings(backend="torch", threads=1, models=(sdxl_folder,), loras_path=shelf)
    request = make_request(num_inference_steps=2, loras=(INK,))
    (served,) = alone(adapted.open(ModelSpec.read(sdxl_folder), (INK,)), request)
    assert local.generate(settings, request, lambda *_: None) == served != alone(loaded, request)[0]
