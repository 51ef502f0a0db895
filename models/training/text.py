"""The text side of the shipped family: a byte-pair vocabulary of our own and two small CLIP-format towers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.conditioners.text import ClipText, TextTower

START, END = "<|startoftext|>", "<|endoftext|>"
# How CLIP cuts text into words before pairs are merged (Radford et al. 2021, released tokenizer).
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY = 4096
MAX_TOKENS = 32
WIDTH = 96
LAYERS = 3
HEADS = 3


def train_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Learn byte-pair merges from ``captions`` and write them as a CLIP tokenizer folder."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    return write_tokenizer([tuple(pair) for pair in learnt["merges"]], folder)


def write_tokenizer(merges: list[tuple[str, str]], folder: Path) -> CLIPTokenizer:
    """Write ``vocab.json``, ``merges.txt`` and the configs of a CLIP tokenizer with these merges."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    # CLIP's end token is its last id: pooling finds it as the largest.
    vocabulary = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = {**special, "model_max_length": MAX_TOKENS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def new_towers(tokenizer: CLIPTokenizer, seed: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two untrained towers over one vocabulary."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def beside(
    tokenizer: CLIPTokenizer, towers: tuple[CLIPTextModel, CLIPTextModelWithProjection]
) -> tuple[TextTower, TextTower]:
    """Two towers with their tokenizer, read as SDXL reads them."""
    first, second = (TextTower(tokenizer, ClipText(tower, penultimate=True)) for tower in towers)
    return first, second
