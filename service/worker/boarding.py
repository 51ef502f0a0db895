"""Jobs that are claimed and whose model, inputs and checkpoint are on their way."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToVideo, Job, Lease, Result
from service.worker.adapted import AdapterUnusable
from service.worker.checkpoints import JobCheckpoint, unpack
from service.worker.clip import Clip
from service.worker.flight import ActiveJob
from service.worker.input import NO_INPUTS, Inputs, read_inputs
from service.worker.loaded import LoadedModel
from service.worker.picture import Picture
from service.worker.piece import Piece, Snapshot
from service.worker.residency import Residency

logger = logging.getLogger(__name__)

READERS = 2
"""Threads that read inputs and checkpoints: an object store answers slowly, and a large png takes time."""


class Refused(Exception):
    """A job that cannot be made here; ``code`` and message are its error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Luggage:
    """What a job brings along."""

    inputs: Inputs
    checkpoint: JobCheckpoint | None


@dataclass(frozen=True)
class _Passenger:
    job: ActiveJob
    model: Future[LoadedModel]
    luggage: Future[_Luggage]


class Boarding:
    """Waits for models and artifacts without holding up the loop."""

    def __init__(self, residency: Residency, artifacts: ArtifactStore) -> None:
        self._residency, self._artifacts = residency, artifacts
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="inputs")
        self._waiting: list[_Passenger] = []

    @property
    def jobs(self) -> list[ActiveJob]:
        """The jobs that wait."""
        return [passenger.job for passenger in self._waiting]

    def take(self, lease: Lease) -> None:
        """Begin to fetch what a job needs."""
        job = lease.job
        if job.request.inputs or job.checkpoint is not None:
            luggage = self._readers.submit(self._fetch, job)
        else:
            luggage = Future()
            luggage.set_result(_Luggage(NO_INPUTS, None))
        self._waiting.append(_Passenger(ActiveJob(lease), self._model(job), luggage))

    def ready(self) -> list[tuple[ActiveJob, list[Piece | None] | Refused]]:
        """The jobs that wait no more: with their pieces, None for one that is stored already; or with what is wrong."""
        done = [passenger for passenger in self._waiting if passenger.model.done() and passenger.luggage.done()]
        self._waiting = [passenger for passenger in self._waiting if passenger not in done]
        return [(passenger.job, _boarded(passenger)) for passenger in done]

    def drop(self, job_id: str) -> None:
        """Forget a job."""
        self._waiting = [passenger for passenger in self._waiting if passenger.job.id != job_id]

    def close(self) -> None:
        """Stop reading."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _model(self, job: Job) -> Future[LoadedModel]:
        try:
            return self._residency.request(job.request.model, job.request.loras)
        except KeyError:
            gone: Future[LoadedModel] = Future()
            gone.set_exception(ValueError(f"model {job.request.model!r} is not installed any more"))
            return gone

    def _fetch(self, job: Job) -> _Luggage:
        return _Luggage(read_inputs(job.request, self._artifacts), self._checkpoint(job))

    def _checkpoint(self, job: Job) -> JobCheckpoint | None:
        """The job's checkpoint, if it has a good one. A worker without it begins anew, which is never wrong."""
        if job.checkpoint is None:
            return None
        try:
            found = unpack(self._artifacts.open(job.checkpoint))
            if found.job != job.id or len(found.pieces) != job.request.n:
                raise ValueError(f"it is one of job {found.job} with {len(found.pieces)} pieces")
            for name in (name for piece in found.pieces if isinstance(piece, Result) for name in piece.artifacts):
                self._artifacts.open(name)
            return found
        except (KeyError, OSError, ValueError) as error:
            logger.warning("a checkpoint is of no use", extra={"job": job.id, "error": str(error)})
            return None


def _boarded(passenger: _Passenger) -> list[Piece | None] | Refused:
    for future, code in ((passenger.model, "model_load_failed"), (passenger.luggage, "input_unreadable")):
        error = future.exception()
        if error is not None:
            code = "adapter_unusable" if isinstance(error, AdapterUnusable) else code
            logger.error("a job cannot be begun", extra={"job": passenger.job.id, "code": code}, exc_info=error)
            return Refused(code, str(error))
    try:
        return _pieces(passenger.job, passenger.model.result(), passenger.luggage.result())
    except ValueError as error:
        return Refused("request_unsupported", str(error))


def _pieces(job: ActiveJob, loaded: LoadedModel, luggage: _Luggage) -> list[Piece | None]:
    record, request = job.lease.job, job.lease.job.request
    checkpoint, deterministic = luggage.checkpoint, request.deterministic
    made_by = [way for way in loaded.ways if checkpoint and way.numerics(deterministic).id == checkpoint.numerics_id]
    usable, way = bool(made_by), made_by[0] if made_by else loaded
    numerics = way.numerics(deterministic)
    saved = list(checkpoint.pieces) if checkpoint is not None and usable else [None] * request.n
    if usable:
        job.checkpoint = record.checkpoint
    job.results = [entry if isinstance(entry, Result) else None for entry in saved]

    def piece(index: int, snapshot: Snapshot | None) -> Piece:
        seed, urgency = request.seed + index, (record.priority, record.deadline_at)
        common = (seed, record.created_at, way, numerics, luggage.inputs, *urgency, snapshot)
        return Clip(request, *common) if isinstance(request, ImageToVideo) else Picture(request, *common)

    return [
        None if isinstance(entry, Result) else piece(i, entry if isinstance(entry, Snapshot) else None)
        for i, entry in enumerate(saved)
    ]
