"""Batches on the tiny model: stages, keys, bytes that do not depend on the batch, and batches that raise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.families import row
from service.jobs.job import TextToImage
from service.worker.batch import Stage
from service.worker.loaded import LoadedModel
from service.worker.picture import MAX_BATCH, Picture
from service.worker.runner import DeviceLost, Runner
from tests.support.rig import denoised, make_request, pixels_of, watch

REQUESTS = [
    make_request(scheduler="euler", num_inference_steps=3),
    make_request(scheduler="dpm++2m", num_inference_steps=3, seed=8),
    make_request(scheduler="ddim", num_inference_steps=3, guidance_scale=1.0, seed=9),
    make_request(scheduler="euler-ancestral", num_inference_steps=3, guidance_scale=1.0, seed=10),
]


def picture(loaded: LoadedModel, request: TextToImage) -> Picture:
    return Picture(request, request.seed, 5.0, loaded, loaded.numerics(request.deterministic))


def states(pictures: list[Picture]) -> list[torch.Tensor]:
    return [made.row.state for made in pictures if made.row is not None]


def test_the_stages_of_a_picture_and_their_keys(loaded: LoadedModel) -> None:
    made, runner = picture(loaded, make_request(num_inference_steps=2)), Runner()
    seen = []
    while made.stage is not Stage.DECODE:
        item = made.item(3)
        seen.append((item.key.stage, item.key.network, item.lanes, item.evaluations, item.key.max_lanes))
        if made.stage is Stage.ENCODE:
            runner.encode([made])
        else:
            runner.denoise([made])
    last = made.item(3)
    assert seen == [("encode", "text", 1, 1, MAX_BATCH[Stage.ENCODE]), ("denoise", "unet", 2, 2, 8),
                    ("denoise", "unet", 2, 1, 8)]  # fmt: skip
    assert (last.key.network, last.lanes, last.evaluations) == ("vae", 1, 1)
    assert last.row == 3 and last.arrived_at == 5.0
    assert last.key.model == "tiny-xl" and last.key.shape == (4, 16, 16) and last.key.numerics_id == loaded.strict.id


def test_without_guidance_a_picture_is_one_lane(loaded: LoadedModel) -> None:
    made = picture(loaded, make_request(guidance_scale=1.0))
    Runner().encode([made])
    assert made.item(0).lanes == 1


def test_strict_and_fast_pictures_do_not_mix(loaded: LoadedModel) -> None:
    strict, fast = (picture(loaded, make_request(deterministic=value)) for value in (True, False))
    Runner().encode([strict, fast])
    assert strict.key != fast.key and replace(strict.key, numerics_id="", max_lanes=0) == replace(
        fast.key, numerics_id="", max_lanes=0
    )


def test_a_row_has_the_same_bits_in_every_batch(loaded: LoadedModel) -> None:
    together, runner = [picture(loaded, request) for request in REQUESTS], Runner()
    runner.encode(together)
    while together[0].stage is Stage.DENOISE:
        runner.denoise(together)
    single = [denoised(loaded, request, request.seed) for request in REQUESTS]
    for a, b in zip(states(together), states(single), strict=True):
        assert torch.equal(a, b)
    runner.decode(together)
    for made, each in zip(single, together, strict=True):
        assert each.pixels is not None and (pixels_of(made) == each.pixels).all()
    assert not (pixels_of(single[0]) == pixels_of(single[1])).all()


def test_previews_are_spread_over_the_steps(loaded: LoadedModel) -> None:
    made, runner = picture(loaded, make_request(num_inference_steps=8, partial_images=3)), Runner()
    runner.encode([made])
    shown = {}
    while made.stage is Stage.DENOISE:
        for preview in runner.denoise([made]):
            assert made.row is not None and preview.picture is made
            shown[made.row.line] = preview
    assert {line: preview.part for line, preview in shown.items()} == {2: 0, 4: 1, 6: 2}
    assert [preview.pixels is None for preview in shown.values()] == [False, True, True], "the first teaches the others"
    assert made.row is not None
    gaps = [float((preview.latent - made.row.state[0]).square().mean()) for preview in shown.values()]
    assert gaps[0] > gaps[2], "they come closer to what it becomes"


def test_a_small_decoder_makes_every_preview(loaded: LoadedModel) -> None:
    latents: list[torch.Tensor] = []

    def small(given: torch.Tensor) -> torch.Tensor:
        latents.append(given)
        return torch.zeros(len(given), 3, 64, 64)

    made = picture(
        replace(loaded, model=replace(loaded.model, fast_decoder=small)),
        make_request(num_inference_steps=8, partial_images=3),
    )
    runner, shown = Runner(), []
    runner.encode([made])
    while made.stage is Stage.DENOISE:
        shown += runner.denoise([made])
    assert [preview.pixels is not None and set(preview.pixels.ravel()) == {128} for preview in shown] == [True] * 3
    assert all(torch.equal(given[0], preview.latent) for given, preview in zip(latents, shown, strict=True))


def test_strict_batches_have_a_constant_size_and_fast_ones_their_own(loaded: LoadedModel) -> None:
    watched, unet, decoder = watch(loaded)
    for deterministic, lanes, decodes in [(True, 8, [1, 1]), (False, 4, [2])]:
        unet.batches.clear()
        decoder.batches.clear()
        made = [
            picture(watched, make_request(seed=s, num_inference_steps=1, deterministic=deterministic)) for s in (1, 2)
        ]
        runner = Runner()
        runner.encode(made)
        runner.denoise(made)
        runner.decode(made)
        assert unet.batches == [lanes] and decoder.batches == decodes


def test_encoding_again_changes_nothing(loaded: LoadedModel) -> None:
    made, runner = picture(loaded, REQUESTS[0]), Runner()
    runner.encode([made])
    first = states([made])[0]
    runner.encode([made])
    assert torch.equal(states([made])[0], first)


@pytest.mark.parametrize("where", ["network", "solver"])
def test_a_step_that_raises_leaves_every_picture_as_it_was(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    watched, unet, _ = watch(loaded)
    made, runner = [picture(watched, request) for request in REQUESTS], Runner()
    runner.encode(made)
    runner.denoise(made)
    before = states(made)

    def broken(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        if where == "network":
            patch.setattr(unet, "before", broken)
        else:
            patch.setattr(row, "solver_step", broken)
        with pytest.raises(MemoryError):
            runner.denoise(made)
    assert all(a is b for a, b in zip(states(made), before, strict=True))
    assert [each.item(0).evaluations for each in made] == [2] * 4
    while made[0].stage is Stage.DENOISE:
        runner.denoise(made)
    for each, request in zip(states(made), REQUESTS, strict=True):
        assert torch.equal(each, states([denoised(loaded, request, request.seed)])[0])


def test_a_process_whose_gpu_is_lost_ends(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here, so every call on it fails; whether it is lost is what a synchronisation says."""
    on_gpu = replace(loaded, model=replace(loaded.model, device=torch.device("cuda:0")))

    def fail(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(DeviceLost, match="the GPU is lost"):
        Runner().run(Stage.ENCODE, [picture(on_gpu, make_request())])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    with pytest.raises((RuntimeError, AssertionError), match="CUDA|cuda"):
        Runner().run(Stage.ENCODE, [picture(on_gpu, make_request())])
