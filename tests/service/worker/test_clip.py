"""Clips: segments and chunks, equal to the family's own functions, and equal again after a cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.families import image_to_video
from models.families.image_to_video import ImageToVideoModel, Motion
from models.families.row import advance
from models.plan import make_plan
from service.metrics import WorkerMetrics
from service.worker.batch import Stage
from service.worker.clip import SEGMENT_SEEDS, Clip
from service.worker.input import Inputs, picture_tensor
from service.worker.loaded import LoadedModel
from service.worker.prompts import Prompts
from service.worker.runner import Runner
from tests.support.rig import a_picture, make_clip

PROMPTS = Prompts(WorkerMetrics())


def a_clip(loaded: LoadedModel, **changes: object) -> Clip:
    request = make_clip(**changes)
    return Clip(request, request.seed, 5.0, loaded, loaded.strict, Inputs(a_picture()))


def advanced(clip: Clip, batches: int = 10_000) -> list[Stage]:
    """Run so many batches, or until the clip is done; the stages of the batches."""
    runner, seen = Runner(), []
    while clip.pixels is None and len(seen) < batches:
        seen.append(clip.stage)
        runner.run(clip.stage, [clip])
    return seen


def made(clip: Clip) -> NDArray[np.uint8]:
    advanced(clip)
    assert clip.pixels is not None
    return clip.pixels


def by_hand(model: ImageToVideoModel, picture: NDArray[np.uint8], seed: int, chunk: int) -> NDArray[np.uint8]:
    plan = make_plan(model.schedule, "euler", 3, image_to_video.guidance(model, 1.0, 3.0))
    row = image_to_video.start_row(model, plan, picture_tensor(picture), Motion(7, 127, 0.02), seed)
    while not row.finished:
        advance(model.denoisers, [row])
    return image_to_video.decode(model, row, chunk)


def test_segments_and_chunks(clip_model: LoadedModel) -> None:
    clip, model = a_clip(clip_model, segments=2, decode_chunk_size=2), clip_model.model
    assert isinstance(model, ImageToVideoModel)
    stages = [Stage.ENCODE, *[Stage.DENOISE] * 3, *[Stage.DECODE] * 2]
    assert advanced(clip) == stages * 2 and clip.pixels is not None
    first = by_hand(model, a_picture(), 7, 2)
    second = by_hand(model, first[-1], (7 + SEGMENT_SEEDS) % 2**63, 2)
    assert np.array_equal(clip.pixels, np.concatenate([first, second[1:]]))
    assert not np.array_equal(clip.pixels[:3], by_hand(model, a_picture(), 7, 3)), "chunks matter"


def test_the_work_left(clip_model: LoadedModel) -> None:
    clip = a_clip(clip_model, segments=2, decode_chunk_size=2)
    seen = []
    while clip.pixels is None:
        item = clip.item(3)
        seen.append((item.lanes, item.evaluations, item.key.max_lanes, item.key.shape, clip.steps_done))
        Runner().run(clip.stage, [clip])
    assert clip.steps == 6 and clip.lines_done == 6
    encode, decode = (1, 1, 1, (3, 4, 16, 16)), [(1, n, 1, (2, 4, 16, 16)) for n in (2, 1)]
    steps = [(2, n, 2, (3, 4, 16, 16)) for n in (3, 2, 1)]
    expected = [encode, *steps, *decode]
    assert [entry[:4] for entry in seen] == expected * 2
    assert [entry[4] for entry in seen] == [0, 0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_clip_goes_on_from_any_cut(clip_model: LoadedModel, cut: int) -> None:
    request = {"segments": 2, "decode_chunk_size": 2}
    whole, clip = a_clip(clip_model, **request), a_clip(clip_model, **request)
    advanced(clip, cut)
    resumed = a_clip(clip_model, **request)
    resumed = Clip(resumed.request, 7, 5.0, clip_model, clip_model.strict, Inputs(a_picture()), saved=clip.snapshot())
    left = advanced(resumed)
    assert resumed.pixels is not None and np.array_equal(resumed.pixels, made(whole))
    assert len(left) - 1 <= 12 - cut, "nothing but the encoding is done again"


def test_a_checkpoint_of_another_picture_is_not_used(clip_model: LoadedModel) -> None:
    clip = a_clip(clip_model, segments=2)
    advanced(clip, 6)
    other = Inputs(a_picture(2))
    request = clip.request
    resumed = Clip(request, 7, 5.0, clip_model, clip_model.strict, other, saved=clip.snapshot())
    fresh = Clip(request, 7, 5.0, clip_model, clip_model.strict, other)
    # The second segment begins from a frame of the first, which the checkpoint brings: it fits, whatever the input is.
    assert clip.snapshot().frames is not None
    early = a_clip(clip_model, segments=2)
    advanced(early, 2)
    wrong = Clip(request, 7, 5.0, clip_model, clip_model.strict, other, saved=early.snapshot())
    assert np.array_equal(made(wrong), made(fresh))
    assert not np.array_equal(made(resumed), made(fresh))


def test_what_is_refused(clip_model: LoadedModel, loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="frames is 5, this model makes 3"):
        a_clip(clip_model, frames=5)
    with pytest.raises(ValueError, match="does not do image-to-video"):
        a_clip(loaded)
    clip = Clip(make_clip(), 7, 5.0, clip_model, clip_model.strict)
    with pytest.raises(ValueError, match="begins from a picture"):
        clip.encode(PROMPTS)
    assert clip.row is None
    with pytest.raises(ValueError, match="decoded before"):
        Clip.decode([clip])


def test_clips_of_one_key_share_a_step(clip_model: LoadedModel) -> None:
    clips = [a_clip(clip_model), a_clip(clip_model, seed=8)]
    fast = [Clip(c.request, c.request.seed, 5.0, clip_model, clip_model.fast, Inputs(a_picture())) for c in clips]
    runner = Runner()
    runner.encode(fast)
    assert fast[0].key == fast[1].key != clips[0].key
    runner.denoise(fast)
    rows = [clip.row for clip in fast]
    assert rows[0] is not None and rows[1] is not None and rows[0].line == rows[1].line == 1
    assert not torch.equal(rows[0].state, rows[1].state)
