"""The job store of several machines: a Redis or Valkey server."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, get_args

import redis
from pydantic import TypeAdapter
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.errors import QueueFull, Unavailable, UnknownJob
from service.jobs import redis_scripts as scripts
from service.jobs.job import REQUEST, Job, JobError, JobState, Lease, Priority, Request, Result, Task
from service.jobs.redis_keys import prefix
from service.jobs.store import (
    HEAD_START_S,
    MAX_ATTEMPTS,
    WORKER_LOST,
    ClassStats,
    Pruned,
    QueueStats,
    check_deadline,
    check_repeated,
    request_json,
)

logger = logging.getLogger(__name__)

_RESULTS = TypeAdapter(tuple[Result, ...])
_HEAD_STARTS = [item for name, seconds in HEAD_START_S.items() for item in (name.value, round(seconds * 1e6))]
_OUT_OF_REACH = ("MISCONF", "OOM", "READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN")
"""Answers of a server that takes no writes now: its disk or memory is full, it starts, or it is a replica."""


class RedisStore:
    """A :class:`service.jobs.store.JobStore` on a Redis 7 or Valkey server, shared by any number of machines.

    Each method is one script, so one round trip; the client is the synchronous one, since the protocol is synchronous
    and one connection a thread needs no event loop between a worker and its jobs. Times are the server's.

    What survives a crash of the server is for the server to say: with ``appendfsync always`` all that was answered,
    with ``everysec`` all but the last two seconds. ``maxmemory-policy`` must be ``noeviction``. Nothing is sent twice
    when a connection breaks, since a job would then be accepted twice: the caller is told :class:`Unavailable`, and an
    idempotency key makes it safe to try again. A lease counts as held until :meth:`reap` takes it back.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
        max_queued: jobs that may wait; the next submit raises :class:`QueueFull`.
        clock: Unix seconds; None for the server's.
        namespace: what the keys of this installation begin with.
        timeout_s: how long a call waits for the server.

    Raises:
        RuntimeError: the keys have another schema.
        Unavailable: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        max_queued: int = 10_000,
        clock: Callable[[], float] | None = None,
        namespace: str = "darkroom",
        timeout_s: float = 5.0,
    ) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._prefix = prefix(namespace)
        self._client = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        version = int(self._run(scripts.OPEN, scripts.SCHEMA_VERSION))
        if version != scripts.SCHEMA_VERSION:
            self.close()
            raise RuntimeError(f"{self._prefix}* has job schema {version}, this Darkroom has {scripts.SCHEMA_VERSION}")
        self._warn_without_log()

    def submit(
        self,
        request: Request,
        idempotency_key: str | None = None,
        *,
        priority: Priority = Priority.STANDARD,
        deadline_s: float | None = None,
        wait: bool = True,
    ) -> Job:
        """Accept a job; see :meth:`JobStore.submit`."""
        if not wait:
            raise BlockingIOError("the server may be far away")
        text = request_json(request)
        check_deadline(deadline_s)
        said, content = self._run(
            scripts.SUBMIT,
            self._now(),
            self._max_queued,
            secrets.token_hex(9),
            # An empty key is a key; the letter tells it from none.
            "" if idempotency_key is None else f"k{idempotency_key}",
            "" if deadline_s is None else _us(deadline_s),
            priority.value,
            request.model,
            request.task,
            text,
            *request.inputs,
        )
        if said == "full":
            raise QueueFull(f"{content} jobs are waiting, and the limit is {self._max_queued}")
        job = _job(content)
        if said == "known":
            check_repeated(job, idempotency_key or "", request, priority, deadline_s)
        return job

    def claim(self, worker: str, limit: int, lease_s: float, models: Collection[str] | None = None) -> list[Lease]:
        """Take queued jobs; see :meth:`JobStore.claim`."""
        if limit <= 0 or models is not None and not models:
            return []
        secret = secrets.token_urlsafe(24)
        turns = (len(HEAD_START_S), *_HEAD_STARTS)
        ends, found = self._run(
            scripts.CLAIM, self._now(), _us(lease_s), worker, limit, secret, *turns, *(models or ())
        )
        jobs = [_job(flat) for flat in found]
        return [Lease(id=f"{job.id}.{secret}", job=job, expires_at=int(ends) / 1e6) for job in jobs]

    def renew(self, lease_ids: Sequence[str], lease_s: float) -> set[str]:
        """Extend leases; see :meth:`JobStore.renew`."""
        if not lease_ids:
            return set()
        return set(self._run(scripts.RENEW, self._now(), _us(lease_s), *lease_ids))

    def checkpoint(self, lease_id: str, artifact: str) -> bool:
        """Record from where to go on; see :meth:`JobStore.checkpoint`."""
        return bool(self._run(scripts.CHECKPOINT, "", lease_id, artifact))

    def complete(self, lease_id: str, results: Sequence[Result]) -> bool:
        """Record the outcome; see :meth:`JobStore.complete`."""
        text = _RESULTS.dump_json(tuple(results)).decode()
        artifacts = (artifact for result in results for artifact in result.artifacts)
        return self._end(lease_id, JobState.COMPLETED, "results", text, artifacts)

    def fail(self, lease_id: str, error: JobError) -> bool:
        """Record a failure; see :meth:`JobStore.fail`."""
        return self._end(lease_id, JobState.FAILED, "error", error.model_dump_json(), ())

    def cancel(self, job_id: str) -> Job | None:
        """End a job as cancelled and take back its lease; see :meth:`JobStore.cancel`."""
        return _job(flat) if (flat := self._run(scripts.CANCEL, self._now(), job_id)) else None

    def delete(self, job_id: str) -> Job | None:
        """Forget a job; see :meth:`JobStore.delete`."""
        return _job(flat) if (flat := self._run(scripts.DELETE, self._now(), job_id)) else None

    def position(self, job_id: str) -> int | None:
        """Queued jobs before this one, exactly; see :meth:`JobStore.position`."""
        before = self._run(scripts.POSITION, "", job_id, *_HEAD_STARTS)
        return None if before is None else int(before)

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return _job(flat) if (flat := self._run(scripts.GET, "", job_id)) else None

    def states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """States of several jobs; see :meth:`JobStore.states`."""
        found = zip(job_ids, self._run(scripts.STATES, "", *job_ids), strict=True)
        return {job_id: JobState(state) for job_id, state in found if state}

    def list(
        self,
        limit: int,
        after: str | None = None,
        state: JobState | None = None,
        *,
        tasks: Collection[Task] | None = None,
        oldest_first: bool = False,
    ) -> list[Job]:
        """A page of jobs; see :meth:`JobStore.list`."""
        states = [state] if state is not None else [] if tasks is None else list(JobState)
        among = get_args(Task) if tasks is None else set(tasks)
        order = int(oldest_first)
        found = self._run(scripts.LIST, "", max(limit, 0), after or "", order, len(states), *states, *among)
        if found is None:
            raise UnknownJob(f"there is no job {after!r} to list from", param="after")
        return [_job(flat) for flat in found]

    def reap(self, worker: str | None = None) -> int:
        """Return lost jobs to the queue, to their old turn, or fail them; see :meth:`JobStore.reap`."""
        touched, more = 0, True
        while more:  # in parts, since the server does nothing else meanwhile
            count = self._run(scripts.REAP, self._now(), worker or "", MAX_ATTEMPTS, WORKER_LOST.model_dump_json())
            touched += count
            more = count == scripts.REAP_LIMIT
        return touched

    def release(self, worker: str) -> int:
        """Give a worker's jobs back unharmed, to their old turn; see :meth:`JobStore.release`."""
        return int(self._run(scripts.RELEASE, "", worker))

    def stats(self) -> QueueStats:
        """Depths, ages and ends; see :meth:`JobStore.stats`."""
        running, queues, ends = self._run(scripts.STATS, "")
        # Of each class the queues of its models: how many jobs, and the one that was accepted first.
        classes: dict[Priority, list[tuple[int, int, int]]] = {}
        models: dict[str, int] = {}
        for name, model, jobs, accepted, created in queues:
            classes.setdefault(Priority(name), []).append((int(accepted), int(created), int(jobs)))
            models[model] = models.get(model, 0) + int(jobs)
        return QueueStats(
            queued=sum(models.values()),
            running=running,
            oldest_queued_at=min(head for heads in classes.values() for head in heads)[1] / 1e6 if classes else None,
            classes={
                priority: ClassStats(sum(jobs for _, _, jobs in heads), min(heads)[1] / 1e6)
                for priority, heads in classes.items()
            },
            models=models,
            ended={JobState(state): int(jobs) for state, jobs in _pairs(ends).items()},
        )

    def prune(self, ended_before: float, limit: int) -> Pruned:
        """Delete old jobs; see :meth:`JobStore.prune`."""
        jobs, free = self._run(scripts.PRUNE, "", _us(ended_before), max(limit, 0))
        return Pruned(jobs, tuple(free))

    def referenced(self, artifacts: Sequence[str]) -> set[str]:
        """Artifacts in use; see :meth:`JobStore.referenced`."""
        found = self._run(scripts.REFERENCED, "", *artifacts)
        return {name for name, used in zip(artifacts, found, strict=True) if used}

    def close(self) -> None:
        """Close the connections; closing twice is fine."""
        self._client.close()

    def _warn_without_log(self) -> None:
        try:
            kept = self._client.info("persistence")["aof_enabled"]
        except (redis.ResponseError, KeyError):
            return  # a hosted server that does not say
        if not kept:
            logger.warning("the server of the job store keeps no append-only log: jobs are lost when it stops")

    def _end(self, lease_id: str, state: JobState, field: str, text: str, artifacts: Iterable[str]) -> bool:
        return bool(self._run(scripts.END, self._now(), lease_id, state.value, field, text, *artifacts))

    def _now(self) -> int | str:
        return "" if self._clock is None else _us(self._clock())

    def _run(self, script: scripts.Script, *arguments: str | int) -> Any:
        """The answer of a script."""
        try:
            try:
                return self._client.evalsha(script.sha, 1, self._prefix, *arguments)
            except redis.exceptions.NoScriptError:  # a server that has just started
                return self._client.eval(script.text, 1, self._prefix, *arguments)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise Unavailable(f"the job store cannot be reached now: {error}") from error
        except redis.ResponseError as error:
            if any(word in str(error) for word in _OUT_OF_REACH):
                raise Unavailable(f"the job store takes no writes now: {error}") from error
            raise


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    """What Redis calls a hash: fields and values in turns."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _job(flat: Sequence[str]) -> Job:
    fields = _pairs(flat)
    times = {name: int(fields[name]) / 1e6 for name in ("created", "deadline", "started", "finished") if name in fields}
    return Job(
        id=fields["id"],
        request=REQUEST.validate_json(fields["request"]),
        state=JobState(fields["state"]),
        created_at=times["created"],
        started_at=times.get("started"),
        finished_at=times.get("finished"),
        attempts=int(fields["attempts"]),
        results=_RESULTS.validate_json(fields.get("results", "[]")),
        error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
        priority=Priority(fields["priority"]),
        deadline_at=times.get("deadline"),
        checkpoint=fields.get("checkpoint"),
    )
