"""Text towers: chunks are read one by one, weights scale vectors, and plain prompts are what they always were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.conditioners.text import ClipText, SideBySide, TextTower, load_clip_text, load_tower, weigh
from models.tokenizers import load_clip_tokenizer
from tests.support.weighted_prompt import Parts, reference_chunks, reference_context

Relative = Callable[[Tensor, Tensor], float]
TOLERANCE = 1e-5
WORDS = "a red cat and a dog "
WEIGHTED: dict[str, Parts] = {
    "a (red:1.5) cat [dog]": [[("a ", 1.0), ("red", 1.5), (" cat ", 1.0), ("dog", 1 / 1.1)]],
    "(a (red cat:1.3) and) a dog": [[("a ", 1.1), ("red cat", 1.43), (" and", 1.1), (" a dog", 1.0)]],
    "a red cat BREAK (a dog:0.4)": [[("a red cat", 1.0)], [("a dog", 0.4)]],
    WORDS * 3 + "(" + WORDS * 5 + ":1.4)": [[(WORDS * 3, 1.0), (WORDS * 5, 1.4)]],
}


@pytest.fixture(scope="module")
def plain(sdxl_folder: Path) -> TextTower:
    return load_tower(sdxl_folder, "text_encoder", projected=False, penultimate=False)


@pytest.fixture(scope="module")
def projected(sdxl_folder: Path) -> TextTower:
    return load_tower(sdxl_folder, "text_encoder_2", projected=True, penultimate=True)


def on_torch(tower: TextTower) -> ClipText:
    assert isinstance(tower.network, ClipText)
    return tower.network


@pytest.fixture
def side_by_side(plain: TextTower, projected: TextTower) -> SideBySide:
    return SideBySide([plain, projected])


def encode(tower: TextTower, prompt: str) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        return tower.encode(tower.chunks(prompt))


@pytest.mark.parametrize("name", ["plain", "projected"])
@pytest.mark.parametrize("prompt", WEIGHTED, ids=["flat", "nested", "break", "long"])
def test_weights_against_float64(name: str, prompt: str, request: pytest.FixtureRequest, relative: Relative) -> None:
    tower: TextTower = request.getfixturevalue(name)
    parts = WEIGHTED[prompt]
    context, _ = encode(tower, prompt)
    clip, penultimate = on_torch(tower).clip, on_torch(tower).penultimate
    expected = reference_context(tower.tokenizer, clip, parts, penultimate)
    assert relative(context, expected) < TOLERANCE
    unweighted = [[(text, 1.0) for text, _ in part] for part in parts]
    for wrong, layer in ((unweighted, penultimate), (parts, not penultimate)):
        other = reference_context(tower.tokenizer, clip, wrong, layer)
        assert relative(context, other) > 100 * TOLERANCE


def test_the_mean_is_restored(relative: Relative) -> None:
    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) + 1.0
    weights = [1.0, 1.5, 1.5, 0.2, 1.0, 1.0]
    result = weigh(hidden, weights)
    assert float(result.mean()) == pytest.approx(float(hidden.mean()), rel=1e-5)
    scaled = hidden * torch.tensor(weights)[:, None]
    assert relative(result / result[0, 0], scaled / scaled[0, 0]) < 1e-6
    assert float(scaled.mean()) != pytest.approx(float(hidden.mean()), rel=1e-2)


def test_weights_of_one_and_a_mean_of_zero() -> None:
    hidden = torch.tensor([[1.0, -1.0], [2.0, 1.0]])
    assert weigh(hidden, [1.0, 1.0]) is hidden
    assert torch.equal(weigh(hidden, [1.0, 0.0]), torch.tensor([[1.0, -1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("name", ["plain", "projected"])
@given(text=st.text(alphabet=st.characters(exclude_characters="()[]\\", codec="utf-8"), max_size=12))
def test_a_plain_prompt_that_fits_has_the_tokens_it_always_had(
    name: str, text: str, plain: TextTower, projected: TextTower
) -> None:
    tower = {"plain": plain, "projected": projected}[name]
    chunks = tower.chunks(text)
    assert [list(chunks[0].ids)] == tower.tokenize([text]).tolist()
    assert set(chunks[0].weights) == {1.0}


@pytest.mark.parametrize("prompt", ["a red cat", "", "(a red cat:1.0)", WORDS * 2])
def test_a_plain_prompt_that_fits_has_the_bytes_it_always_had(projected: TextTower, prompt: str) -> None:
    with torch.inference_mode():
        ids = projected.tokenize([prompt.removeprefix("(").removesuffix(":1.0)")])
        expected = on_torch(projected).clip(ids, output_hidden_states=True)
    context, pooled = encode(projected, prompt)
    assert torch.equal(context, expected.hidden_states[-2][0])
    assert torch.equal(pooled, expected.text_embeds[0])


def test_a_long_prompt_is_its_chunks_in_a_row(projected: TextTower) -> None:
    """And a chunk's bytes do not depend on how many follow."""
    long = WORDS * 7
    ids = [tokens for tokens, _ in reference_chunks(projected.tokenizer, [[(long, 1.0)]])]
    assert len(ids) == 4
    with torch.inference_mode():
        outputs = [on_torch(projected).clip(torch.tensor([tokens]), output_hidden_states=True) for tokens in ids]
    context, pooled = encode(projected, long)
    assert torch.equal(context, torch.cat([output.hidden_states[-2][0] for output in outputs]))
    assert torch.equal(pooled, outputs[0].text_embeds[0])
    assert not torch.equal(pooled, outputs[1].text_embeds[0])


def test_pooled_text_has_no_weights(projected: TextTower) -> None:
    weighted, plain = encode(projected, "a (red:1.5) cat"), encode(projected, "a red cat")
    assert torch.equal(weighted[1], plain[1])
    assert not torch.equal(weighted[0], plain[0])


def test_towers_of_different_needs_get_equally_many_chunks(side_by_side: SideBySide, sdxl_folder: Path) -> None:
    """One of the tokenizers knows no merges, so it needs more tokens for the same words."""
    plain, projected = side_by_side.towers
    spelling = load_clip_tokenizer(sdxl_folder / "tokenizer")
    ids = {piece: i for piece, i in spelling.get_vocab().items() if len(piece.removesuffix("</w>")) == 1}
    speller = TextTower(Speller(ids, spelling), plain.network)  # type: ignore[arg-type]
    uneven = SideBySide([projected, speller])
    prompt = "red cat dog " * 3
    assert (len(projected.chunks(prompt)), len(speller.chunks(prompt))) == (1, 2)
    assert uneven.count(prompt) == 2
    with torch.inference_mode():
        context, pooled = uneven.encode(prompt)
        own, empty = encode(projected, prompt), encode(projected, "")
    assert context.shape == (2 * 20, 40 + 24) and len(pooled) == 2
    assert torch.equal(context[:, :40], torch.cat([own[0], empty[0]]))
    assert torch.equal(context[:, 40:], encode(speller, prompt)[0])


class Speller:
    """A tokenizer that gives a token for every letter."""

    def __init__(self, ids: dict[str, int], like) -> None:
        self.ids = ids
        self.model_max_length = like.model_max_length
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            like.bos_token_id,
            like.eos_token_id,
            like.pad_token_id,
        )

    def __call__(self, text: str, **_):
        self.input_ids = [self.ids[c] for c in text if c != " "]
        return self


def test_chunks_are_filled_up_for_all(side_by_side: SideBySide) -> None:
    with torch.inference_mode():
        one, (first, second) = side_by_side.encode("a dog")
        three, pooled = side_by_side.encode("a dog", at_least=3)
        empty, _ = side_by_side.encode("")
    assert one.shape == (20, 64) and first.shape == (24,) and second.shape == (28,)
    assert torch.equal(three, torch.cat([one, empty, empty]))
    assert torch.equal(pooled[1], second)


def test_whatever_is_called_in_its_place_reads(projected: TextTower, sdxl_folder: Path) -> None:
    asked = list[str]()

    def tower_of(name: str, load: Callable[[], ClipText]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        asked.append(name)
        return lambda ids: tuple(2.0 * output for output in load()(ids))  # type: ignore[return-value]

    doubled = load_tower(sdxl_folder, "text_encoder_2", projected=True, penultimate=True, tower_of=tower_of)
    assert asked == ["text_encoder_2"] and doubled.length == projected.length
    for ours, plain in zip(encode(doubled, "a red cat"), encode(projected, "a red cat"), strict=True):
        assert torch.equal(ours, 2.0 * plain)
    assert SideBySide([projected, doubled]).networks == (projected.network,), "an engine has no weights to look after"


def test_towers_of_different_lengths_are_refused(side_by_side: SideBySide, sdxl_folder: Path) -> None:
    shorter = load_clip_tokenizer(sdxl_folder / "tokenizer")
    shorter.model_max_length = 12
    first, second = side_by_side.towers
    with pytest.raises(ValueError, match=r"model_max_length \[12, 20\]"):
        SideBySide([TextTower(shorter, first.network), second])


def test_a_tokenizer_longer_than_its_tower_is_refused(plain: TextTower, sdxl_folder: Path) -> None:
    longer = load_clip_tokenizer(sdxl_folder / "tokenizer")
    longer.model_max_length = 21
    with pytest.raises(ValueError, match="model_max_length=21 is more than .* max_position_embeddings=20"):
        TextTower(longer, plain.network)


def test_a_tower_that_masks_its_padding_is_refused(sdxl_folder: Path) -> None:
    clip = load_clip_text(sdxl_folder / "text_encoder", projected=False, penultimate=True).clip
    clip.config.use_attention_mask = True
    with pytest.raises(ValueError, match="use_attention_mask=True is not supported"):
        ClipText(clip, penultimate=True)


def test_narrow_towers_answer_in_fp32(sdxl_folder: Path, projected: TextTower, relative: Relative) -> None:
    narrow = load_tower(sdxl_folder, "text_encoder_2", projected=True, penultimate=True, dtype=torch.bfloat16)
    context, pooled = encode(narrow, "a (red:1.5) cat")
    expected, expected_pooled = encode(projected, "a (red:1.5) cat")
    assert context.dtype == pooled.dtype == torch.float32
    assert 1e-4 < relative(context, expected) < 0.1
    assert 1e-4 < relative(pooled, expected_pooled) < 0.1
