"""Encoders from folders: as strict as our own networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from models.encoders import load_encoder, read_tokenizer
from tests.support.tiny_towers import write_tiny_sd3

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


def test_t5_has_one_table_under_two_names(tmp_path: Path) -> None:
    write_tiny_sd3(tmp_path)
    network = load_encoder(T5EncoderModel, tmp_path / "text_encoder_3")
    assert network.shared.weight.data_ptr() == network.encoder.embed_tokens.weight.data_ptr()
    assert torch.equal(network.shared.weight, load_file(tmp_path / "text_encoder_3" / WEIGHTS)["shared.weight"])


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


def test_a_tokenizer_that_is_none(sdxl_folder: Path, tmp_path: Path) -> None:
    assert read_tokenizer(CLIPTokenizer, sdxl_folder / "tokenizer").model_max_length == 20
    with pytest.raises(ValueError, match="gone is missing"):
        read_tokenizer(CLIPTokenizer, tmp_path / "gone")
    shutil.copytree(sdxl_folder / "tokenizer", tmp_path / "tokenizer")
    for path in (tmp_path / "tokenizer").iterdir():
        path.write_text("{" * 100)
    with pytest.raises(ValueError, match="tokenizer holds no tokenizer that makes sense"):
        read_tokenizer(CLIPTokenizer, tmp_path / "tokenizer")


def test_a_pickle_is_not_looked_at(tower: Path) -> None:
    torch.save(load_file(tower / WEIGHTS), tower / "pytorch_model.bin")
    (tower / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="text_encoder_2 holds neither model.safetensors"):
        load_encoder(CLIPTextModelWithProjection, tower)
