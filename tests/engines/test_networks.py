"""The networks of every system's folder, and that their signatures are the torch modules' own call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engines.call import examples, outputs_of
from engines.networks import bucket, mmdit_signature, networks_of, unet_signature
from engines.verify import CHECKED
from models.spec.mmdit import MMDiTSpec
from models.spec.model import ModelSpec
from models.spec.unet import UNetSpec
from tests.support.published_unets import LDM_SUPER_RESOLUTION, SVD, UPSCALER
from tests.support.tiny_towers import write_tiny_ldm_upscaler, write_tiny_sd, write_tiny_sd3, write_tiny_svd
from tests.support.tiny_xl import write_tiny_xl

AUTOENCODER = ["vae/decoder", "vae/encoder"]
SYSTEMS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "sd": (write_tiny_sd, ["unet", *AUTOENCODER, "text_encoder"]),
    "sdxl": (write_tiny_xl, ["unet", *AUTOENCODER, "text_encoder", "text_encoder_2"]),
    "sd3": (write_tiny_sd3, ["transformer", *AUTOENCODER, "text_encoder", "text_encoder_2", "text_encoder_3"]),
    "ldm-upscaler": (write_tiny_ldm_upscaler, ["unet", "vae/decoder"]),
    "svd": (write_tiny_svd, ["unet", *AUTOENCODER, "image_encoder"]),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_signatures_are_the_calls_of_the_torch_modules(tmp_path: Path, system: str) -> None:
    write, names = SYSTEMS[system]
    write(tmp_path / "model")
    networks = networks_of(tmp_path / "model")
    assert list(networks) == names
    assert [name for name, network in networks.items() if network.is_tower] == names[3:]
    for network in networks.values():
        sizes = {symbol: CHECKED[1][symbol] for symbol in network.signature.symbols}
        inputs = examples(network.signature, sizes)
        assert network.signature.match([tensor.shape for tensor in inputs]) == sizes
        with torch.no_grad():
            outputs = outputs_of(network.load()(*inputs))
        assert [tuple(t.shape) for t in outputs] == [port.shape(sizes) for port in network.signature.outputs]
        assert all(t.dtype == torch.float32 for t in outputs)


def test_a_class_index_is_a_whole_number_of_the_embedding() -> None:
    signature = unet_signature(UNetSpec.from_config(UPSCALER))
    vector = examples(signature, dict.fromkeys(signature.symbols, 3))[3]
    assert signature.inputs[3].below == UPSCALER["num_class_embeds"]
    assert vector.shape == (3, 1) and torch.equal(vector, vector.floor()) and 1 < vector.max() < 1000


def test_a_network_without_a_context_is_given_one_without_numbers() -> None:
    signature = unet_signature(UNetSpec.from_config(LDM_SUPER_RESOLUTION))
    context = signature.inputs[2]
    assert context.empty and context.shape({"batch": 3}) == (3, 1, 0) and "tokens" not in signature.symbols
    assert [one.name for one in signature.graph_inputs] == ["x", "c_noise"]


def test_a_video_network_keeps_its_tokens_free_where_they_are_text() -> None:
    video = UNetSpec.from_config(SVD)
    assert "tokens" in unet_signature(video).symbols and "tokens" not in unet_signature(video, tokens=1).symbols


def test_a_position_table_limits_the_size() -> None:
    spec = MMDiTSpec(16, 16, 1, 2, 4, 8, 8, position_size=24, native_size=8)
    with pytest.raises(ValueError, match="height at most 24"):
        mmdit_signature(spec).match([(1, 16, 50, 16), (1,), (1, 3, 8), (1, 8)])


def test_fp16_only_where_it_does_not_overflow(tmp_path: Path) -> None:
    write_tiny_sd(tmp_path / "model")
    networks = networks_of(tmp_path / "model")
    assert networks["unet"].precision("fp16") == "fp16"
    assert networks["vae/decoder"].precision("fp16") == "fp32"  # its config says force_upcast
    assert networks["vae/decoder"].precision("bf16") == "bf16"


def test_buckets_of_a_size_in_pixels(tmp_path: Path) -> None:
    write_tiny_svd(tmp_path / "svd")
    write_tiny_sd3(tmp_path / "sd3")
    svd, sd3 = (networks_of(tmp_path / name) for name in ("svd", "sd3"))
    spec = ModelSpec.read(tmp_path / "svd")
    assert bucket(svd["unet"], spec, 2, 32, 64) == {"batch": 2, "frames": 3, "height": 16, "width": 8}
    assert bucket(svd["vae/decoder"], spec, 1, 32, 64) == {"batch": 1, "frames": 3, "height": 32, "width": 16}
    assert bucket(svd["vae/encoder"], spec, 1, 32, 64) == {"batch": 1, "height": 32, "width": 16}
    assert bucket(svd["image_encoder"], spec, 1, 32, 64) == {"batch": 1}
    wanted = {"batch": 4, "height": 8, "width": 8, "tokens": 20 + 256}
    assert bucket(sd3["transformer"], ModelSpec.read(tmp_path / "sd3"), 4, 32, 32) == wanted
    with pytest.raises(ValueError, match="width is 33 pixels, expected a multiple of 4"):
        bucket(svd["unet"], spec, 1, 33, 32)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_index\.json is missing"):
        networks_of(tmp_path)
