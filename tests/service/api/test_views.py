"""Views of jobs: what is left out, and what is added."""

from __future__ import annotations

from service.api.views import JobView, Progress, ends_of
from service.jobs.job import Job, JobState, Result, TextToImage, Variant

REQUEST = TextToImage(
    model="m", prompt="x", width=8, height=8, num_inference_steps=4, guidance_scale=1, scheduler="euler", seed=0
)


def test_progress_is_of_running_jobs_only() -> None:
    for state in JobState:
        job = Job(id="a", request=REQUEST, state=state, created_at=1)
        view = JobView.of(job, Progress(step=1, steps=4), None, None)
        assert (view.progress is not None) is (state is JobState.RUNNING)


def test_results_have_addresses() -> None:
    variant = Variant(name="thumbnail", content_sha256="1" * 64, media_type="image/webp")
    result = Result(content_sha256="0" * 64, media_type="video/mp4", seed=1, numerics_id="n", variants=(variant,))
    job = Job(id="a", request=REQUEST, state=JobState.COMPLETED, created_at=1, results=(result, result))
    views = JobView.of(job, None, None, None).results
    assert [view.url for view in views] == ["/v1/jobs/a/results/0", "/v1/jobs/a/results/1"]
    assert views[1].variants[0].url == "/v1/jobs/a/results/1?variant=thumbnail"


def test_ends_of_a_page() -> None:
    assert ends_of("abc") == ("a", "c") and ends_of("a") == ("a", "a") and ends_of("") == (None, None)
