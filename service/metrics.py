"""Every Prometheus metric, in base units and with bounded labels.

API and worker are two processes behind one ``/metrics``. The worker writes its exposition to a file, at once and
whole, and the API merges it with its own. The multiprocess mode of prometheus-client would do the same with one
memory-mapped file a process and metric type, but wants an environment variable set before its first import, leaves
files behind for every worker that ever died, and gives up custom collectors (so no memory and CPU of the process).
The price of the file: up to a second of a killed worker's counts is lost, and a new worker counts from zero, which
Prometheus' ``rate`` and ``increase`` take for the restart that it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.jobs.job import JobState, Priority
from service.jobs.store import QueueStats

logger = logging.getLogger(__name__)

SILENT_S = 120.0
"""Workers write about once a second, but not in the middle of a batch."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""From one step of a small network to a long video."""
LANES = (1, 2, 4, 8, 16)
"""The ladder of batch sizes."""
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Predicted over actual cost: 1 is a perfect prediction."""


def _jobs_total(registry: CollectorRegistry) -> Counter:
    # One family in both processes: the worker counts completed and failed, the API cancelled. None is counted twice.
    return Counter(
        "darkroom_jobs_total",
        "Jobs that ended, by outcome (completed, failed, cancelled) and reason (the error's code, client, disconnect)",
        ["outcome", "reason"],
        registry=registry,
    )


class ApiMetrics:
    """What the API process counts.

    Args:
        registry: where the metrics are kept; None: in one of its own.
        keeps_worker: whether it tells of a supervised worker. A server without one has not lost it.
    """

    def __init__(self, registry: CollectorRegistry | None = None, keeps_worker: bool = True) -> None:
        self.registry = registry = registry or CollectorRegistry()
        ProcessCollector(namespace="darkroom_api", registry=registry)
        self.requests = Counter(
            "darkroom_requests_total", "HTTP requests answered", ["endpoint", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "darkroom_request_seconds",
            "From the first byte of a request to the last of its answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.refused = Counter(
            "darkroom_refused_total",
            "Requests that were refused, by reason (queue_full, deadline, unauthorized)",
            ["reason"],
            registry=registry,
        )
        self.open_requests = Gauge(
            "darkroom_open_requests", "HTTP requests that are being answered, streams included", registry=registry
        )
        self.jobs = _jobs_total(registry)
        self._queue = _Queue()
        registry.register(self._queue)
        self.reaped = Counter(
            "darkroom_jobs_reaped_total",
            "Jobs taken back from a worker that died or fell silent: queued again, or failed after the last attempt",
            registry=registry,
        )
        supervisor = registry if keeps_worker else None
        self.worker_up = Gauge("darkroom_worker_up", "Whether the supervised worker is alive", registry=supervisor)
        self.worker_restarts = Counter(
            "darkroom_worker_restarts_total", "Worker processes started after another had died", registry=supervisor
        )
        self.deleted = Counter(
            "darkroom_deleted_total", "What retention deleted: jobs and artifacts", ["what"], registry=registry
        )
        self.artifact_bytes = Gauge(
            "darkroom_artifact_bytes", "Artifacts that the last round of retention left", registry=registry
        )

    def show_queue(self, stats: QueueStats | None, now: float) -> None:
        """What the store says at ``now`` (Unix seconds); None when it is away, and then its numbers are left out."""
        self._queue.stats, self._queue.now = stats, now

    def exposition(self, worker_file: Path) -> bytes:
        """The text of both processes, each family once."""
        return generate_latest(_Merged(self.registry, _read_families(worker_file)))


class WorkerMetrics:
    """What the worker process counts. Stages are encode, denoise (one step of one batch), decode and media."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        ProcessCollector(namespace="darkroom_worker", registry=registry)
        self.jobs = _jobs_total(registry)
        self.job_seconds = Histogram(
            "darkroom_job_seconds", "From the first claim of a job to its end", buckets=SECONDS, registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "darkroom_queue_wait_seconds", "From submission to the first claim", buckets=SECONDS, registry=registry
        )
        self.stage_seconds = Histogram(
            "darkroom_stage_seconds", "One batch through one stage", ["stage"], buckets=SECONDS, registry=registry
        )
        self.batch_lanes = Histogram(
            "darkroom_batch_lanes", "Lanes of a batch, without padding", ["stage"], buckets=LANES, registry=registry
        )
        self.padded_lanes = Counter(
            "darkroom_padded_lanes_total", "Lanes computed only to fill a batch", ["stage"], registry=registry
        )
        self.steps = Counter(
            "darkroom_steps_total",
            "Steps of pictures: useful ones went into a result, wasted ones into a job that was cancelled, failed or "
            "begun again",
            ["use"],
            registry=registry,
        )
        self.model_load_seconds = Histogram(
            "darkroom_model_load_seconds", "Time to bring networks into memory", buckets=SECONDS, registry=registry
        )
        self.evictions = Counter(
            "darkroom_evictions_total", "Networks that left the memory to make room", registry=registry
        )
        self.store_unavailable = Counter(
            "darkroom_store_unavailable_total",
            "Calls of the job store that found it away, and are tried again",
            ["verb"],
            registry=registry,
        )
        self._add_scheduling(registry)
        self._add_recovery(registry)
        self._add_engines(registry)

    def _add_scheduling(self, registry: CollectorRegistry) -> None:
        self.cost_ratio = Histogram(
            "darkroom_cost_ratio",
            "Seconds that were predicted for a batch over those that it took",
            ["stage"],
            buckets=RATIOS,
            registry=registry,
        )
        self.preemptions = Counter(
            "darkroom_preemptions_total",
            "Batches after which other work went first, though a row of them had steps left",
            registry=registry,
        )
        self.pieces_in_flight = Gauge(
            "darkroom_pieces_in_flight", "Pictures and clips that are claimed and not decoded yet", registry=registry
        )
        self.prompt_cache = Counter(
            "darkroom_prompt_cache_total", "Looks for an encoded prompt: hit or miss", ["result"], registry=registry
        )
        self.previews = Counter("darkroom_previews_total", "Previews that were shown", registry=registry)
        self.device_memory_bytes = Gauge(
            "darkroom_device_memory_bytes",
            "Memory of the GPU: allocated now, the most since the start (peak), reserved by the allocator, whole",
            ["kind"],
            registry=registry,
        )
        self.kernels = Gauge(
            "darkroom_kernels",
            "Which implementations of an op have run on the GPU: 1 for triton, for torch, or for both",
            ["op", "implementation"],
            registry=registry,
        )

    def _add_recovery(self, registry: CollectorRegistry) -> None:
        self.checkpoints = Counter(
            "darkroom_checkpoints_total", "Checkpoints by outcome: written or failed", ["outcome"], registry=registry
        )
        _begin_at_zero(self.checkpoints, ("written", "failed"))
        self.checkpoint_seconds = Histogram(
            "darkroom_checkpoint_seconds",
            "Processor time of one checkpoint, beside the loop and on it",
            buckets=SECONDS,
            registry=registry,
        )
        self.resumed = Counter(
            "darkroom_resumed_steps_total",
            "Steps of pictures and clips that another worker had made and that were not made again",
            registry=registry,
        )
        self.out_of_memory = Counter(
            "darkroom_out_of_memory_total", "Batches for which the memory was too small", ["stage"], registry=registry
        )

    def _add_engines(self, registry: CollectorRegistry) -> None:
        self.engines = Gauge(
            "darkroom_engines",
            "Networks by what has become of their engine: building, engine (it serves), rejected, slower or dropped",
            ["state"],
            registry=registry,
        )
        self.engine_fallbacks = Counter(
            "darkroom_engine_fallbacks_total",
            "Engines that torch serves for: rejected before they served, or dropped because they failed in service",
            ["reason"],
            registry=registry,
        )
        _begin_at_zero(self.engine_fallbacks, ("rejected", "dropped"))

    def write(self, path: Path) -> None:
        """Leave the exposition for the API, replacing the file at once. Call it about once a second."""
        write_to_textfile(str(path), self.registry)


def _begin_at_zero(counter: Counter, values: Iterable[str]) -> None:
    """Show these values of a counter's one label before they occur: Prometheus sees no increase in a first sample."""
    for value in values:
        counter.labels(value)


class _Queue(Collector):
    """The store's own numbers. They are the store's and not this process's: every server that shares a store shows the
    same ones, so take their maximum over servers and not their sum."""

    def __init__(self) -> None:
        self.stats: QueueStats | None = None
        self.now = 0.0

    def collect(self) -> Iterable[Metric]:
        stats = self.stats
        yield GaugeMetricFamily("darkroom_store_up", "Whether the job store answers", value=float(stats is not None))
        depth = GaugeMetricFamily("darkroom_queue_depth", "Jobs waiting for a worker, by priority", labels=["class"])
        age = GaugeMetricFamily(
            "darkroom_oldest_queued_age_seconds",
            "Age of the job that waits longest, by priority, 0 for none",
            labels=["class"],
        )
        running = GaugeMetricFamily("darkroom_jobs_running", "Jobs claimed by a worker")
        ended = CounterMetricFamily(
            "darkroom_store_jobs_ended", "Jobs of the store that ever ended, by outcome", labels=["outcome"]
        )
        if stats is not None:
            running.add_metric([], stats.running)
            for priority in Priority:
                found = stats.classes.get(priority)
                oldest_at = found.oldest_queued_at if found is not None else None
                depth.add_metric([priority], found.queued if found is not None else 0)
                age.add_metric([priority], 0.0 if oldest_at is None else max(0.0, self.now - oldest_at))
            for state in JobState:
                if state.final:
                    ended.add_metric([state], stats.ended.get(state, 0))
        yield from (depth, age, running, ended)


class _Merged(Collector):
    """Families of a registry together with others: one family a name, for the format allows no second."""

    def __init__(self, registry: CollectorRegistry, others: Iterable[Metric]) -> None:
        self._registry = registry
        self._others = others

    def collect(self) -> Iterable[Metric]:
        families = {family.name: family for family in self._registry.collect()}
        for other in self._others:
            known = families.setdefault(other.name, other)
            if known is not other:
                known.samples.extend(other.samples)
        for family in families.values():
            # Creation times double the number of series and the text format has no place for them.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        return [family for family in families.values() if family.samples or not family.name.endswith("_created")]


def _read_families(path: Path) -> list[Metric]:
    """What a worker left there; nothing of one that has not written for so long that it must be dead."""
    try:
        if time.time() - path.stat().st_mtime > SILENT_S:
            return []
        return list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except ValueError:
        logger.warning("worker metrics cannot be read", extra={"path": str(path)})
        return []
