"""The worker while its store is away: it goes on with what it has, and loses nothing but what others took."""

from __future__ import annotations

from functools import partial

import pytest

from service.errors import Unavailable
from service.jobs.job import JobState
from service.worker import leases, loop
from tests.support.rig import NAME, Rig, alone


def in_denoiser(rig: Rig, calls: int) -> None:
    """Run until the UNet has been called so often."""
    rig.tick_until(lambda: len(rig.unet.batches) >= calls)


class Away:
    """Makes some verbs of a rig's store fail as if its server were gone."""

    def __init__(self, rig: Rig, patch: pytest.MonkeyPatch, *verbs: str) -> None:
        self.calls = dict.fromkeys(verbs, 0)
        for verb in verbs:
            patch.setattr(rig.store, verb, partial(self._fail, verb))

    def _fail(self, verb: str, *_: object) -> None:
        self.calls[verb] += 1
        raise Unavailable("the server does not answer")


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are renewed and jobs looked for in every turn."""
    monkeypatch.setattr(loop, "IDLE_WAIT_S", 0.0)
    for name in ("RENEW_EVERY_S", "CLAIM_EVERY_S"):
        monkeypatch.setattr(leases, name, 0.0)


def test_a_store_that_is_away_costs_no_work(rig: Rig, restless: None) -> None:
    job = rig.submit(num_inference_steps=20)
    in_denoiser(rig, 3)
    with pytest.MonkeyPatch.context() as patch:
        away = Away(rig, patch, "claim", "renew", "complete", "fail", "release")
        rig.tick_until(lambda: away.calls["complete"] > 1)
        waiting = rig.submit(seed=8)
        rig.worker.tick()
        assert len(rig.unet.batches) == 20 and rig.get(job).state is JobState.RUNNING
        assert 0 < away.calls["renew"] < 10, "each attempt is later than the one before"
        assert rig.value("darkroom_store_unavailable_total", verb="renew") == away.calls["renew"]
        assert rig.value("darkroom_store_unavailable_total", verb="complete") > 1
    rig.finish(job, waiting)
    assert rig.get(job).attempts == 1 and rig.contents(job) == alone(rig.loaded, job.request)
    assert rig.get(waiting).state is JobState.COMPLETED
    assert rig.value("darkroom_jobs_total", outcome="completed", reason="") == 2


def test_a_lease_that_is_lost_while_the_store_is_away(rig: Rig, restless: None) -> None:
    job, kept = rig.submit(num_inference_steps=40), rig.submit(seed=8, num_inference_steps=40)
    in_denoiser(rig, 3)
    with pytest.MonkeyPatch.context() as patch:
        away = Away(rig, patch, "claim", "renew")
        rig.tick_until(lambda: away.calls["renew"] > 0)
        rig.store.cancel(job.id)
    rig.finish(kept)
    assert rig.get(job).state is JobState.CANCELLED and not rig.get(job).results
    assert 3 <= rig.value("darkroom_steps_total", use="wasted") < 40
    assert rig.contents(kept) == alone(rig.loaded, kept.request)


def test_closing_does_not_wait_for_a_store_that_is_away(rig: Rig) -> None:
    job = rig.submit(num_inference_steps=50)
    in_denoiser(rig, 3)
    with pytest.MonkeyPatch.context() as patch:
        away = Away(rig, patch, "complete", "release")
        rig.worker.close()
        assert away.calls["release"] == 1
    assert rig.get(job).state is JobState.RUNNING and rig.store.reap(NAME) == 1
