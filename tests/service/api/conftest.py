"""A real server on a free port with a stand-in for the worker: it claims from the real store and paints squares."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from openai import DefaultHttpxClient, OpenAI
from PIL import Image

from models.spec.model import ModelSpec, find_models
from service.api.app import create_app
from service.jobs.artifacts import ArtifactStore
from service.jobs.bus import Bus, Event
from service.jobs.job import ImageToVideo, JobError, Lease, Result, Variant
from service.jobs.open import open_store
from service.jobs.store import JobStore
from service.settings import Settings


@dataclass
class Painter:
    """Claims jobs and paints one square a picture, its colour from the seed. Tests hold it back or make it fail."""

    settings: Settings
    gate: threading.Event = field(default_factory=threading.Event)
    """Cleared: jobs are claimed and reported half done, and not finished."""
    paused: threading.Event = field(default_factory=threading.Event)
    """Set: nothing is claimed."""
    error: JobError | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    turns: int = 0
    heard: list[tuple[str, str | None]] = field(default_factory=list)
    """Type and job of every event of the API."""

    def pause(self) -> None:
        """Claim nothing more, from now on."""
        self.paused.set()
        turn = self.turns
        while self.turns < turn + 2 and not self.stopping.is_set():
            time.sleep(0.005)

    def run(self) -> None:
        self.store = open_store(self.settings.store_url)
        self.bus = Bus(self.settings.bus_address)
        self.artifacts = ArtifactStore(self.settings.artifacts_address)
        held: list[Lease] = []
        while not self.stopping.is_set():
            self.turns += 1
            self.heard += [(event.type, event.job) for event in self.bus.receive(0.02)]
            if not self.paused.is_set():
                fresh = self.store.claim("painter", 8, 30.0)
                held += fresh
                for lease in fresh:
                    self._preview(lease)
            if self.gate.is_set():
                for lease in held:
                    self._finish(lease)
                held.clear()
            for lease in held:
                steps = lease.job.request.num_inference_steps
                self.bus.publish(Event(type="progress", job=lease.job.id, step=steps // 2, steps=steps))
        self.bus.close()
        self.store.close()

    def _finish(self, lease: Lease) -> None:
        request = lease.job.request
        if self.error is not None:
            self.store.fail(lease.id, self.error)
        else:
            seeds = range(request.seed, request.seed + request.n)
            make = self._clip if isinstance(request, ImageToVideo) else self._picture
            self.store.complete(lease.id, [make(lease, seed) for seed in seeds])
        self.bus.publish(Event(type="finished", job=lease.job.id))

    def _picture(self, lease: Lease, seed: int) -> Result:
        kind = lease.job.request.output_format
        sha256 = self.artifacts.put(square(seed, kind))
        return Result(content_sha256=sha256, media_type=f"image/{kind}", seed=seed, numerics_id="n1")

    def _clip(self, lease: Lease, seed: int) -> Result:
        def put(name: str, content: bytes, media_type: str) -> Variant:
            return Variant(name=name, content_sha256=self.artifacts.put(content), media_type=media_type)

        clip = self.artifacts.put(b"a clip of %d" % seed)
        variants = (
            put("thumbnail", square(seed, "webp"), "image/webp"),
            put("spritesheet", square(seed, "jpeg"), "image/jpeg"),
        )
        return Result(content_sha256=clip, media_type="video/mp4", seed=seed, numerics_id="n1", variants=variants)

    def _preview(self, lease: Lease) -> None:
        request = lease.job.request
        for index in range(request.n):
            for part in range(getattr(request, "partial_images", 0)):
                name = self.artifacts.put(square(part, "png"))
                steps = request.num_inference_steps
                told = Event("preview", lease.job.id, part + 1, steps, index=index, part=part, preview=name)
                self.bus.publish(told)


def square(red: int, kind: str) -> bytes:
    """An encoded picture of 8 x 8 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red % 256, 0, 0)).save(file, kind)
    return file.getvalue()


@dataclass(frozen=True)
class Server:
    """A running server and what a test needs of it."""

    url: str
    settings: Settings
    store: JobStore
    painter: Painter
    http: httpx.Client
    openai: OpenAI

    def ready(self, state: str = "ready", pid: int | None = None) -> None:
        """Write what a worker would."""
        status = {"pid": pid or os.getpid(), "state": state, "models": ["tiny"]}
        self.settings.worker_status_path.write_text(json.dumps(status))

    def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until something holds."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.01)


def write_clip_model(folder: Path) -> None:
    """The files of a model folder for clips of 14 frames that a spec is read from."""
    files = {
        "model_index.json": {"_class_name": "StableVideoDiffusionPipeline"},
        "unet/config.json": {"sample_size": 32, "num_frames": 14, "in_channels": 8},
        "vae/config.json": {"block_out_channels": [8, 16], "latent_channels": 4},
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler",
            "prediction_type": "v_prediction",
            "timestep_type": "continuous",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        },
        "darkroom.json": {"sizes": [[64, 32], [32, 64]], "steps": 10, "guidance": 3.0},
    }
    _write(folder, files)


def write_upscaler(folder: Path) -> None:
    """The files of an upscaler's folder that a spec is read from."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionUpscalePipeline"},
        "unet/config.json": {
            "sample_size": 16, "in_channels": 7, "num_class_embeds": 1000, "block_out_channels": [8, 8],
        },
        "vae/config.json": {"block_out_channels": [8, 8, 8], "latent_channels": 4},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "clip_sample": False},
        "low_res_scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler"},
        "darkroom.json": {"sizes": [[64, 64]]},
    }  # fmt: skip
    _write(folder, files)


def write_ldm_upscaler(folder: Path) -> None:
    """The same of one of latent diffusion."""
    files = {
        "model_index.json": {"_class_name": "LDMSuperResolutionPipeline"},
        "unet/config.json": {"sample_size": 16, "in_channels": 6, "block_out_channels": [8, 8]},
        "vqvae/config.json": {"_class_name": "VQModel", "block_out_channels": [8, 8, 8]},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "clip_sample": False},
    }
    _write(folder, files)


def write_model(folder: Path) -> None:
    """The files of a model folder that a spec is read from."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
        "unet/config.json": {"sample_size": 32, "in_channels": 4},
        "vae/config.json": {"block_out_channels": [8, 16], "latent_channels": 4},
        "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler"},
        "darkroom.json": {"sizes": [[64, 64], [64, 32]], "steps": 10, "guidance": 4.0},
    }
    _write(folder, files)


def _write(folder: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """Two tiny models, the first of which is the default, and one for clips."""
    folder = tmp_path_factory.mktemp("models")
    write_clip_model(folder / "tiny-video")
    write_model(folder / "tiny")
    write_model(folder / "tiny-two")
    (folder / "tiny-two" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return find_models(folder)


@pytest.fixture
def server(tmp_path: Path, models: dict[str, ModelSpec]) -> Iterator[Server]:
    """A server of this test's own, whose painter works at once."""
    settings = Settings(data=tmp_path / "data", max_queued=5, sync_timeout_s=20)
    yield from run_server(settings, models)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, models: dict[str, ModelSpec]) -> Iterator[Server]:
    """One server for the tests that do not mind each other."""
    yield from run_server(Settings(data=tmp_path_factory.mktemp("shared") / "data", max_queued=100_000), models)


def run_server(settings: Settings, models: dict[str, ModelSpec]) -> Iterator[Server]:
    """A real uvicorn in a thread."""
    settings.data.mkdir(parents=True)
    store = open_store(settings.store_url, settings.max_queued)
    bus = Bus(settings.bus_address)
    app = create_app(settings, store, bus, ArtifactStore(settings.artifacts_address), models)

    @app.get("/broken", include_in_schema=False)
    async def broken() -> None:
        raise RuntimeError("a secret detail")

    uv = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    painter = Painter(settings)
    painter.gate.set()
    threads = [threading.Thread(target=uv.run), threading.Thread(target=painter.run)]
    for thread in threads:
        thread.start()
    while not uv.started:
        time.sleep(0.005)
    url = f"http://127.0.0.1:{uv.servers[0].sockets[0].getsockname()[1]}"
    # Nothing is encrypted here, and reading the certificates takes longer than most tests.
    plain = DefaultHttpxClient(verify=False)
    with (
        httpx.Client(base_url=url, timeout=20, verify=False) as http,
        OpenAI(base_url=f"{url}/v1", api_key="none", http_client=plain) as openai,
    ):
        yield Server(url, settings, store, painter, http, openai)
    painter.stopping.set()
    uv.should_exit = True
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    bus.close()
    store.close()
