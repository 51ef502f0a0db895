"""What an opened model runs on, and what its numerics ids and its networks' identities depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.families import image_to_video, text_to_image
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings
from service.worker.loaded import LoadedModel, Role
from service.worker.opening import load_model
from service.worker.parking import modules_of
from service.worker.runner import Runner
from tests.support.rig import denoised, make_request
from tests.support.single_files import write_single_file
from tests.support.tiny_towers import write_tiny_sd3, write_tiny_svd

TORCH = Settings(backend="torch", threads=1)


def identity(model: LoadedModel, role: Role) -> str:
    return model.networks[role].identity


def test_strict_and_fast_rows_are_told_apart(loaded: LoadedModel) -> None:
    assert loaded.strict.id != loaded.fast.id
    assert loaded.numerics(True) is loaded.strict and loaded.numerics(False) is loaded.fast
    assert loaded.strict.padded_lanes == loaded.strict.max_lanes and loaded.strict.lone_decode


def test_opening_reads_no_weights_and_makes_the_same_picture(sdxl_folder: Path) -> None:
    opened = load_model(ModelSpec.read(sdxl_folder), TORCH)
    assert all(network.home.since is None for network in opened.networks.values())
    assert all(network.size_bytes > 1000 for network in opened.networks.values())
    whole = text_to_image.load(sdxl_folder)
    assert isinstance(opened.model, text_to_image.TextToImageModel)
    ours, theirs = (text_to_image.generate(model, "a red cat", 7, 2) for model in (opened.model, whole))
    other = text_to_image.generate(whole, "a blue dog", 7, 2)
    assert np.array_equal(ours, theirs) and not np.array_equal(ours, other)


def test_a_video_model_makes_the_same_clip(tmp_path: Path) -> None:
    write_tiny_svd(tmp_path / "tiny-svd")
    opened = load_model(ModelSpec.read(tmp_path / "tiny-svd"), TORCH)
    assert opened.strict.padded_lanes == opened.strict.max_lanes == 2
    whole = image_to_video.load(tmp_path / "tiny-svd")
    picture = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    assert isinstance(opened.model, image_to_video.ImageToVideoModel)
    ours, theirs = (image_to_video.generate(model, picture, 7, 2) for model in (opened.model, whole))
    other = image_to_video.generate(whole, picture, 8, 2)
    assert np.array_equal(ours, theirs) and not np.array_equal(ours, other)


def change_json(path: Path, name: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def test_the_ids_follow_everything_that_changes_pixels(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "tiny-xl"
    shutil.copytree(loaded.model.spec.folder, folder)

    def opened() -> LoadedModel:
        return load_model(ModelSpec.read(folder), TORCH)

    first = opened()
    assert first.strict.id == loaded.strict.id, "where the folder lies does not matter"
    assert identity(first, "conditioner") == identity(loaded, "conditioner")
    (folder / "README.md").write_text("nor what is written about it")
    assert opened().strict.id == first.strict.id
    text = folder / "text_encoder" / "model.safetensors"
    content = bytearray(text.read_bytes())
    content[-2] ^= 1
    text.write_bytes(content)
    reworded = opened()
    assert identity(reworded, "conditioner") != identity(first, "conditioner")
    assert identity(reworded, "denoiser") == identity(first, "denoiser"), "each network has its own"
    change_json(folder / "scheduler" / "scheduler_config.json", "steps_offset", 0)
    rescheduled = opened()
    change_json(folder / "vae" / "config.json", "scaling_factor", 0.2)
    rescaled = opened()
    assert identity(rescaled, "decoder") == identity(rescaled, "encoder") != identity(first, "decoder")
    assert len({model.strict.id for model in (first, reworded, rescheduled, rescaled)}) == 4


def test_t5_in_8_bits_is_another_model_of_half_the_size(sdxl_folder: Path, tmp_path: Path) -> None:
    write_tiny_sd3(tmp_path / "tiny-sd3")
    spec, in_8_bits = ModelSpec.read(tmp_path / "tiny-sd3"), TORCH.model_copy(update={"t5": "8bit"})
    full, rounded = load_model(spec, TORCH), load_model(spec, in_8_bits)
    assert len({model.strict.id for model in (full, rounded)} | {model.fast.id for model in (full, rounded)}) == 4
    assert identity(full, "conditioner") != identity(rounded, "conditioner")
    assert identity(full, "denoiser") == identity(rounded, "denoiser")
    network = rounded.networks["conditioner"]
    t5 = network.get().t5.network
    assert any(parameter.dtype == torch.int8 for parameter in t5.parameters())
    held = sum(t.nbytes for module in modules_of(network.get()) for t in (*module.parameters(), *module.buffers()))
    assert held == pytest.approx(network.size_bytes, rel=0.02)
    without = ModelSpec.read(sdxl_folder)
    assert load_model(without, TORCH).strict.id == load_model(without, in_8_bits).strict.id, "it has none"


def test_the_shipped_models_share_all_but_the_denoiser() -> None:
    base, turbo = (load_model(ModelSpec.read(ZOO / name), TORCH) for name in ("emoji-xl", "emoji-xl-turbo"))
    for role in ("conditioner", "decoder", "encoder"):
        assert identity(base, role) == identity(turbo, role)
    assert identity(base, "denoiser") != identity(turbo, "denoiser")
    assert base.strict.id != turbo.strict.id


@pytest.mark.timeout(300)  # the export, where the cores are busy
def test_on_onnxruntime_rows_are_their_own_in_any_batch(
    loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path
) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    settings = Settings(data=tmp_path, backend="onnxruntime", threads=1)
    fast = load_model(loaded.model.spec, settings)
    assert fast.strict == fast.fast and fast.strict.padded_lanes == 0 and not fast.strict.lone_decode
    assert fast.strict.id not in (loaded.strict.id, loaded.fast.id)
    assert fast.strict.id == load_model(loaded.model.spec, settings).strict.id
    assert identity(fast, "denoiser") != identity(loaded, "denoiser")
    assert identity(fast, "conditioner") != identity(loaded, "conditioner")

    def decoded(model: LoadedModel, seeds: list[int]) -> list[np.ndarray]:
        pictures = [denoised(model, make_request(), seed) for seed in seeds]
        Runner().decode(pictures)
        return [picture.pixels for picture in pictures if picture.pixels is not None]

    together, single = decoded(fast, [7, 8, 9]), [decoded(fast, [seed])[0] for seed in (7, 8, 9)]
    assert all((a == b).all() for a, b in zip(together, single, strict=True))

    # The same picture as on torch, but for rounding.
    reference = decoded(loaded, [7])[0].astype(int)
    assert abs(together[0] - reference).max() <= 1
    assert abs(together[1] - reference).mean() > 10


def test_the_encoder_beside_engines_begins_from_a_picture(
    loaded: LoadedModel, sdxl_engines: Path, tmp_path: Path
) -> None:
    (tmp_path / "engines").symlink_to(sdxl_engines)
    fast = load_model(loaded.model.spec, Settings(data=tmp_path, backend="onnxruntime", threads=1))
    side = 32 // loaded.model.downscale
    picture = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    drawn, none = torch.randn(1, loaded.model.latent_channels, side, side), torch.zeros(1)

    def latent(model: LoadedModel, noise: Tensor) -> Tensor:
        assert isinstance(model.model, text_to_image.TextToImageModel) and model.model.encoder is not None
        with torch.inference_mode():
            return model.model.encoder(picture, noise)

    assert torch.allclose(latent(fast, drawn), latent(loaded, drawn), atol=1e-4)
    assert not torch.allclose(latent(fast, drawn), latent(loaded, none), atol=1e-4)


def test_models_in_single_files_share_no_encoders_but_equal_ones(sdxl_folder: Path, tmp_path: Path) -> None:
    def opened(name: str, gain: float) -> LoadedModel:
        folder = shutil.copytree(sdxl_folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = write_single_file(sdxl_folder, folder / "all.safetensors", "sdxl")
        changed = {key: gain * tensor if key.startswith("conditioner.") else tensor for key, tensor in tensors.items()}
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, folder / "all.safetensors")
        return load_model(ModelSpec.read(folder), TORCH)

    one, same, other = opened("one", 1.0), opened("same", 1.0), opened("other", 2.0)
    assert identity(one, "conditioner") == identity(same, "conditioner") != identity(other, "conditioner")
    assert one.strict == same.strict != other.strict
    plain = load_model(ModelSpec.read(sdxl_folder), TORCH)
    for role in ("conditioner", "denoiser", "decoder"):
        assert one.networks[role].size_bytes == pytest.approx(plain.networks[role].size_bytes, rel=1e-3)
