"""Encoders from folders: as strict as our own networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
)

from models.eight_bit import EightBitLinear
from models.encoders import bytes_of_t5_in_8_bits, load_encoder, load_t5_in_8_bits
from tests.support.tiny_towers import write_tiny_sd3, write_tiny_svd

WEIGHTS = "model.safetensors"


@pytest.fixture
def tower(sdxl_folder: Path, tmp_path: Path) -> Path:
    """A copy of a text encoder that a test may break."""
    shutil.copytree(sdxl_folder / "text_encoder_2", tmp_path / "text_encoder_2")
    return tmp_path / "text_encoder_2"


def test_it_is_what_transformers_loads(sdxl_folder: Path, tower: Path) -> None:
    for cls, folder in ((CLIPTextModel, sdxl_folder / "text_encoder"), (CLIPTextModelWithProjection, tower)):
        network, theirs = load_encoder(cls, folder), cls.from_pretrained(folder)
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        assert network.state_dict().keys() == theirs.state_dict().keys()
        ids = torch.tensor([[3, 1, 4, 1, 5]])
        with torch.inference_mode():
            assert torch.equal(network(ids).last_hidden_state, theirs(ids).last_hidden_state)
    assert {p.dtype for p in load_encoder(CLIPTextModelWithProjection, tower, torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_every_kind_of_tower_is_what_transformers_loads(tmp_path: Path, t5_folder: Path) -> None:
    """With its buffers, in each precision."""
    write_tiny_svd(tmp_path / "svd")
    pictures = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    for cls, folder, given, name in (
        (CLIPVisionModelWithProjection, tmp_path / "svd" / "image_encoder", pictures, "image_embeds"),
        (T5EncoderModel, t5_folder, ids, "last_hidden_state"),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            network, theirs = load_encoder(cls, folder, dtype), cls.from_pretrained(folder, dtype=dtype)
            told, expected = (
                {key: (t.dtype, tuple(t.shape)) for key, t in (*n.named_parameters(), *n.named_buffers())}
                for n in (network, theirs)
            )
            assert told == expected and not any(tensor.is_meta for tensor in network.buffers())
            moved = given.to(dtype) if given.is_floating_point() else given
            with torch.inference_mode():
                assert torch.equal(getattr(network(moved), name), getattr(theirs.eval()(moved), name))


def test_a_buffer_that_no_file_holds_is_named(tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CLIPTextModelWithProjection.__init__

    def with_a_table(self: CLIPTextModelWithProjection, config: object) -> None:
        made(self, config)
        self.register_buffer("table", torch.ones(2), persistent=False)

    monkeypatch.setattr(CLIPTextModelWithProjection, "__init__", with_a_table)
    with pytest.raises(ValueError, match="has a buffer table, of which no file says"):
        load_encoder(CLIPTextModelWithProjection, tower)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_tiny_sd3(folder)
    return folder / "text_encoder_3"


def test_t5_has_one_table_under_two_names(t5_folder: Path) -> None:
    for network in (load_encoder(T5EncoderModel, t5_folder), load_t5_in_8_bits(t5_folder)):
        assert network.shared.weight.data_ptr() == network.encoder.embed_tokens.weight.data_ptr()
        assert torch.equal(network.shared.weight, load_file(t5_folder / WEIGHTS)["shared.weight"])


def hidden(network: T5EncoderModel) -> Tensor:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.inference_mode():
        return network(ids).last_hidden_state.float()


def test_t5_in_8_bits_is_the_one_that_its_rounded_weights_make(t5_folder: Path) -> None:
    network, full = load_t5_in_8_bits(t5_folder), load_encoder(T5EncoderModel, t5_folder)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    exact, rounded = hidden(full), hidden(network)
    layers = [module for module in network.modules() if isinstance(module, EightBitLinear)]
    assert len(layers) == 2 * 7 and not any(isinstance(module, nn.Linear) for module in network.modules())
    for name, module in network.named_modules():
        if isinstance(module, EightBitLinear):
            full.get_parameter(f"{name}.weight").data = module.scale[:, None] * module.weight
    assert relative_norm(rounded, hidden(full)) < 1e-5
    assert 1e-3 < relative_norm(rounded, exact) < 0.03
    narrow = load_t5_in_8_bits(t5_folder, torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.int8, torch.bfloat16}
    assert 1e-3 < relative_norm(hidden(narrow), exact) < 0.05


def relative_norm(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


def test_what_t5_takes_in_8_bits_is_known_before_it_is_read(t5_folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network, told = load_t5_in_8_bits(t5_folder, dtype), bytes_of_t5_in_8_bits(t5_folder, dtype)
        assert told == sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def test_t5_in_8_bits_is_as_strict(t5_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(t5_folder, tmp_path / "text_encoder_3")
    state = load_file(t5_folder / WEIGHTS)
    state.pop("encoder.final_layer_norm.weight")
    save_file(state, tmp_path / "text_encoder_3" / WEIGHTS)
    with pytest.raises(ValueError, match=r"missing keys \['encoder.final_layer_norm.weight'\]"):
        load_t5_in_8_bits(tmp_path / "text_encoder_3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("text_projection.weight"), r"missing keys \['text_projection.weight'\]"),
        (lambda s: s.update({"text_model.extra": torch.zeros(1)}), r"unexpected keys \['text_model.extra'\]"),
        (lambda s: s.update({"text_projection.weight": torch.zeros(3, 3)}), "shapes differ"),
        (lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(20)}), None),
    ],
)
def test_weights_must_fit_to_the_letter(
    tower: Path, change: Callable[[dict[str, Tensor]], object], message: str | None
) -> None:
    state = load_file(tower / WEIGHTS)
    change(state)
    save_file(state, tower / WEIGHTS)
    if message is None:
        load_encoder(CLIPTextModelWithProjection, tower)
    else:
        with pytest.raises(ValueError, match=message):
            load_encoder(CLIPTextModelWithProjection, tower)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, expected a whole number, at most 200"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_size": 10**12}, "config.json|shapes differ"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(tower: Path, change: dict[str, object], message: str) -> None:
    path = tower / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_encoder(CLIPTextModelWithProjection, tower)


def test_a_pickle_is_not_looked_at(tower: Path) -> None:
    torch.save(load_file(tower / WEIGHTS), tower / "pytorch_model.bin")
    (tower / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="text_encoder_2 holds neither model.safetensors"):
        load_encoder(CLIPTextModelWithProjection, tower)
