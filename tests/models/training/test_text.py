"""The vocabulary and the towers of the text side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.conditioners.sdxl import SDXLConditioner
from models.training.concepts import CONCEPTS, captions
from models.training.diffusion import UNET_CONFIG
from models.training.text import MAX_TOKENS, VOCABULARY, WIDTH, beside, new_towers, train_tokenizer, write_tokenizer

CAPTIONS = [caption for concept in CONCEPTS for caption in captions(concept, "3d")]
WORDS = sorted({word for concept in CONCEPTS for word in concept.name.split()})
TEXTS = [
    *CAPTIONS[::50],
    "",
    "A  RED\tCat!",
    "don't",
    "naïve café 7 \N{UNICORN FACE}",
    "#version ##",
    "an unseen zyzzyva",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return train_tokenizer(iter(CAPTIONS), folder)


@pytest.fixture(scope="module")
def towers(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    first, second = new_towers(tokenizer, seed=0)
    return first.eval(), second.eval()


@pytest.fixture(scope="module")
def conditioner(tokenizer: CLIPTokenizer, towers) -> SDXLConditioner:
    return SDXLConditioner(beside(tokenizer, towers), UNET_CONFIG["addition_time_embed_dim"], zeros_for_empty=True)


def merged(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The published algorithm, for a plain lower-case word: the oldest merge first, wherever it fits."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in merges]
        if not pairs:
            break
        first = min(pairs, key=merges.index)
        i = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == first)
        pieces[i : i + 2] = ["".join(first)]
    return pieces


def test_the_folder_reads_back_as_the_same_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    again = CLIPTokenizer.from_pretrained(folder)
    assert again(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.model_max_length == tokenizer.model_max_length == MAX_TOKENS
    assert len({tuple(ids) for ids in again(TEXTS).input_ids}) == len(TEXTS)


def test_words_are_cut_as_the_published_algorithm_does(tokenizer: CLIPTokenizer, folder: Path) -> None:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in map(str.split, lines)]
    for word in [*WORDS[::5], "starfishes", "unbearable", "zyzzyva", "q"]:
        assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids)[1:-1] == merged(word, merges)


def test_start_end_and_padding(tokenizer: CLIPTokenizer) -> None:
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (start, end) == (len(tokenizer) - 2, len(tokenizer) - 1)  # CLIP's end is its largest id
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == end
    assert tokenizer("").input_ids == [start, end]
    short, long = tokenizer(["a cat", "a cat " * 40], padding="max_length", truncation=True).input_ids
    assert len(short) == len(long) == MAX_TOKENS
    assert short[0] == long[0] == start and short[3:] == [end] * (MAX_TOKENS - 3)
    assert long.count(end) == 1 and long[-1] == end


def test_words_of_the_captions_are_one_token_and_others_are_more(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) <= VOCABULARY + 2
    lengths = {word: len(ids) - 2 for word, ids in zip(WORDS, tokenizer(WORDS).input_ids, strict=True)}
    assert {word for word, length in lengths.items() if length > 1} == set()
    assert len(tokenizer("zyzzyva").input_ids) - 2 >= 4


def test_the_longest_caption_fits(tokenizer: CLIPTokenizer) -> None:
    assert max(map(len, tokenizer(CAPTIONS).input_ids)) <= MAX_TOKENS // 2


def test_case_and_spaces_do_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer("  A\n\nRed   HEART ").input_ids == tokenizer("a red heart").input_ids


@settings(max_examples=100)
@given(st.text())
def test_no_text_is_refused(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text, truncation=True).input_ids
    assert 2 <= len(ids) <= MAX_TOKENS
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert max(ids[1:-1], default=0) < tokenizer.bos_token_id  # no character is unknown: bytes are the alphabet


def test_unseen_characters_keep_their_bytes(tokenizer: CLIPTokenizer) -> None:
    for text in ("\N{UNICORN FACE}", "日本", "ß", "\N{ZERO WIDTH JOINER}"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_a_vocabulary_without_merges_spells(tmp_path: Path) -> None:
    tokenizer = write_tokenizer([], tmp_path)
    assert len(tokenizer) == 2 * 256 + 2
    assert tokenizer.convert_ids_to_tokens(tokenizer("cat").input_ids)[1:-1] == ["c", "a", "t</w>"]


def test_the_towers_fit_the_unet(tokenizer: CLIPTokenizer, towers, conditioner: SDXLConditioner) -> None:
    first, second = (tower.config for tower in towers)
    assert first.hidden_size == second.hidden_size == second.projection_dim == WIDTH
    assert first.vocab_size == second.vocab_size == len(tokenizer)
    condition = conditioner.encode("a cat 3d", 64, 64)
    assert condition.context.shape == (MAX_TOKENS, UNET_CONFIG["cross_attention_dim"])
    assert condition.vector.shape == (UNET_CONFIG["projection_class_embeddings_input_dim"],)


def test_the_seed_makes_the_towers_and_the_two_differ(tokenizer: CLIPTokenizer, towers) -> None:
    for tower, again, other in zip(towers, new_towers(tokenizer, 0), new_towers(tokenizer, 1), strict=True):
        weights, same, different = (next(t.parameters()) for t in (tower, again, other))
        assert torch.equal(weights, same) and not torch.equal(weights, different)
    assert not torch.equal(next(towers[0].parameters()), next(towers[1].parameters()))


@torch.no_grad()
def test_text_is_pooled_at_its_end(tokenizer: CLIPTokenizer, towers) -> None:
    """Not at the start, which sees nothing, nor at the last of the padding, which wears the same id."""
    second = towers[1]
    padded = tokenizer(["a cat", "a picture of a cat 3d"], padding="max_length", return_tensors="pt").input_ids
    output = second(padded)
    ends = (padded == tokenizer.eos_token_id).int().argmax(dim=1)  # the first of them
    assert ends.tolist() == [3, 8]
    expected = second.text_projection(output.last_hidden_state[torch.arange(2), ends])
    torch.testing.assert_close(output.text_embeds, expected)
    unpadded = second(padded[:1, :4]).text_embeds
    torch.testing.assert_close(output.text_embeds[:1], unpadded)


def test_pooled_text_depends_on_every_word(conditioner: SDXLConditioner, relative) -> None:
    def pooled(text: str) -> torch.Tensor:
        return conditioner.encode(text, 64, 64).vector[:WIDTH]

    expected = pooled("a red heart 3d")
    assert torch.equal(pooled("A  red heart 3d"), expected)
    for text in ("a red heart noto", "a red balloon 3d", "a green heart 3d", "heart red a 3d", "a red heart"):
        assert relative(pooled(text), expected) > 0.1
