"""The check that the tests of stores rely on refuses what it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.jobs.job import Job, JobState, Result, TextToImage
from tests.service.jobs.history import QUEUED, RUNNING, check_history

RESULT = Result(content_sha256="ab" * 32, media_type="image/png", seed=7, numerics_id="cpu-fp32")


def life(picture: Callable[..., TextToImage]) -> tuple[list[dict[str, Job]], list[str]]:
    queued = Job(id="j", request=picture(), state=QUEUED, created_at=1)
    running = queued.model_copy(update={"state": RUNNING, "attempts": 1, "started_at": 2.0})
    done = running.model_copy(update={"state": JobState.COMPLETED, "finished_at": 3.0, "results": (RESULT,)})
    return [{}, {"j": queued}, {"j": running}, {"j": done}, {"j": done}], ["j"]


def test_control_the_checker_refuses_tampered_histories(picture: Callable[..., TextToImage]) -> None:
    history, ends = life(picture)
    check_history(history, ends)
    done, running = history[-1]["j"], history[2]["j"]
    for tampered, told in [
        (history, ["j", "j"]),  # ended twice
        (history, []),  # ended without anybody saying so
        ([*history, {"j": running}], []),  # came back to life
        ([*history, {"j": done.model_copy(update={"results": (RESULT, RESULT)})}], ends),  # completed again
        ([*history, {}], []),  # vanished
        ([history[1], history[3]], ends),  # completed without a worker
        ([history[1], {"j": running.model_copy(update={"attempts": 0})}], []),  # claimed without being counted
        ([history[2], {"j": done.model_copy(update={"finished_at": None})}], ends),  # ended at no time
    ]:
        with pytest.raises(AssertionError):
            check_history(tampered, told)
