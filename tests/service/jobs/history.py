"""What the lives of jobs may look like from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from service.jobs.job import Job, JobState
from service.jobs.store import MAX_ATTEMPTS

QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING
ALLOWED = {QUEUED: {QUEUED, RUNNING, JobState.CANCELLED, JobState.EXPIRED}, RUNNING: set(JobState)}

Snapshot = Mapping[str, Job]


def check_history(history: Sequence[Snapshot], ends: Iterable[str]) -> None:
    """Raise AssertionError unless ``history`` (all jobs after each call) and ``ends`` (the job of every call that said
    it ended one) tell of jobs that move as they may and end exactly once."""
    for before, after in zip(history, history[1:], strict=False):
        assert before.keys() <= after.keys(), "a job has vanished"
        for job_id, old in before.items():
            new = after[job_id]
            if old.state.final:
                assert new == old, f"job {job_id} changed after its end"
                continue
            assert new.state in ALLOWED[old.state], f"job {job_id} went from {old.state} to {new.state}"
            claimed = old.state is QUEUED and new.state is RUNNING
            released = old.state is RUNNING and new.state is QUEUED and new.attempts < old.attempts
            attempts = old.attempts + claimed - released
            assert new.attempts == attempts <= MAX_ATTEMPTS, f"job {job_id} has miscounted attempts"
            assert new.state.final == (new.finished_at is not None)
    final = sorted(job_id for job_id, job in history[-1].items() if job.state.final)
    assert sorted(ends) == final, "a job ended never or twice"
