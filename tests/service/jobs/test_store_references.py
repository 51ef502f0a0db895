"""What a job refers to, for how long, and what is forgotten with it: the same on every store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.jobs.job import ImageToVideo, Inpainting, JobState, Result, TextToImage, Variant
from service.jobs.store import JobStore, Pruned

Picture = Callable[..., TextToImage]
CLIP = Result(
    content_sha256="clip",
    media_type="video/mp4",
    seed=7,
    numerics_id="x",
    variants=(
        Variant(name="thumbnail", content_sha256="thumbnail", media_type="image/webp"),
        Variant(name="spritesheet", content_sha256="spritesheet", media_type="image/jpeg"),
    ),
)
FILES = ["first-frame", "clip", "thumbnail", "spritesheet"]


def clip(image: str = "first-frame") -> ImageToVideo:
    return ImageToVideo(
        model="tiny-video", width=64, height=64, num_inference_steps=4, guidance_scale=3.0, scheduler="euler", seed=7,
        image=image, frames=8, fps=7,
    )  # fmt: skip


def inpainting(picture: Picture, image: str, mask: str) -> Inpainting:
    fields = picture().model_dump(exclude={"task"})
    return Inpainting(**fields, image=image, mask=mask)


def test_a_job_refers_to_its_inputs_and_to_all_its_files_until_it_is_deleted(store: JobStore, clock: Any) -> None:
    assert store.referenced(FILES) == set()
    job = store.submit(clip())
    assert store.referenced(FILES) == {"first-frame"}, "from its acceptance"
    (lease,) = store.claim("w1", 1, 30)
    assert store.complete(lease.id, [CLIP])
    assert store.referenced(FILES) == set(FILES)
    clock.now += 10
    assert store.prune(clock.now, 10) == Pruned(1, tuple(FILES))
    assert store.referenced(FILES) == set() and store.get(job.id) is None


@pytest.mark.parametrize("end", ["fail", "cancel", "expire"])
def test_a_job_without_results_keeps_its_inputs_too(store: JobStore, picture: Picture, clock: Any, end: str) -> None:
    """It may be looked at, and made again, as long as it is there."""
    job = store.submit(inpainting(picture, "picture", "mask"), deadline_s=5)
    if end == "fail":
        for _ in range(3):
            store.claim("w1", 1, 30)
            store.reap("w1")
    elif end == "cancel":
        store.cancel(job.id)
    else:
        clock.now += 5
        store.reap()
    ended = store.get(job.id)
    assert ended is not None and ended.state.final
    assert store.referenced(["picture", "mask"]) == {"picture", "mask"}
    assert store.prune(clock.now + 1, 1).artifacts == ("picture", "mask")


def test_an_artifact_lives_as_long_as_the_last_job_that_refers_to_it(
    store: JobStore, picture: Picture, clock: Any
) -> None:
    """One job made it, another begins from it twice."""
    first = store.submit(picture(), "key")
    (lease,) = store.claim("w1", 1, 30)
    store.complete(lease.id, [Result(content_sha256="shared", media_type="image/png", seed=7, numerics_id="x")])
    second = store.submit(inpainting(picture, "shared", "shared"), "key 2")
    assert store.submit(inpainting(picture, "shared", "shared"), "key 2") == second, "and is counted once"
    clock.now += 10
    assert store.prune(clock.now, 10) == Pruned(1, ()) and store.get(first.id) is None
    assert store.referenced(["shared"]) == {"shared"}
    store.cancel(second.id)
    assert store.prune(clock.now + 1, 10) == Pruned(1, ("shared",))


def test_a_refused_submit_refers_to_nothing(store: JobStore) -> None:
    with pytest.raises(ValueError, match="deadline_s"):
        store.submit(clip("unused"), deadline_s=-1)
    assert store.referenced(["unused"]) == set()


def test_delete_forgets_a_job_that_has_ended(store: JobStore, clock: Any) -> None:
    job = store.submit(clip(), "key")
    (lease,) = store.claim("w1", 1, 30)
    store.complete(lease.id, [CLIP])
    other = store.submit(clip())
    clock.now += 1
    deleted = store.delete(job.id)
    assert deleted is not None and (deleted.id, deleted.state, deleted.results) == (job.id, JobState.COMPLETED, (CLIP,))
    assert store.get(job.id) is None and [found.id for found in store.list(10)] == [other.id]
    assert store.delete(job.id) is None and store.delete("nobody") is None
    assert store.referenced(FILES) == {"first-frame"}, "the other job's"
    assert store.submit(clip(), "key").id != job.id, "its key is free"
    assert store.stats().ended == {JobState.COMPLETED: 1}, "what ended stays counted"
    assert store.prune(clock.now + 1, 10) == Pruned(0, ())


@pytest.mark.parametrize("running", [False, True])
def test_delete_ends_a_live_job_as_cancelled(store: JobStore, clock: Any, running: bool) -> None:
    job = store.submit(clip())
    leases = store.claim("w1", 1, 30) if running else []
    for lease in leases:
        store.checkpoint(lease.id, "half")
    clock.now += 1
    deleted = store.delete(job.id)
    assert deleted is not None
    assert (deleted.state, deleted.finished_at, deleted.checkpoint) == (JobState.CANCELLED, clock.now, None)
    assert store.get(job.id) is None and store.referenced(["first-frame", "half"]) == set()
    stats = store.stats()
    assert (stats.queued, stats.running, stats.ended) == (0, 0, {JobState.CANCELLED: 1})
    for lease in leases:
        assert store.renew([lease.id], 30) == set()
        assert not store.complete(lease.id, [CLIP]) and not store.checkpoint(lease.id, "half")
    assert store.claim("w2", 1, 30) == [] and store.reap("w1") == 0
    assert store.referenced([*FILES, "half"]) == set()


def test_ids_go_up_after_the_newest_job_was_deleted(store: JobStore, picture: Picture) -> None:
    kept = store.submit(picture()).id
    store.delete(store.submit(picture()).id)
    newest = store.submit(picture()).id
    assert [job.id for job in store.list(3)] == [newest, kept] and newest > kept
    assert [lease.job.id for lease in store.claim("w1", 3, 30)] == [kept, newest]
