"""Every task through the stock client against a real server and worker: edits, streams and clips."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from tests.e2e.test_readme import block, typed
from tests.support.pipelines import quiet
from tests.support.server import ServerProcess
from tests.support.tiny_towers import write_tiny_svd, write_tiny_upscaler

pytestmark = pytest.mark.filterwarnings("ignore:.*[Vv]ideo.*:DeprecationWarning", "ignore:.*Sora.*:DeprecationWarning")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, sdxl_engines: Path) -> Iterator[ServerProcess]:
    """A server with a tiny model for pictures, one that enlarges them and one for clips, on torch."""
    folder = tmp_path_factory.mktemp("studio")
    (folder / "models").mkdir()
    (folder / "models" / "tiny-xl").symlink_to(sdxl_folder)
    write_tiny_svd(folder / "models" / "tiny-svd")
    write_tiny_upscaler(folder / "models" / "tiny-upscaler")
    (folder / "models" / "tiny-upscaler" / "darkroom.json").write_text(json.dumps({"steps": 4}))
    with ServerProcess(folder / "data", folder / "models", sdxl_engines, "torch") as server:
        yield server


@pytest.fixture(scope="module")
def client(studio: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{studio.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def halves() -> bytes:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (16, 0, 32, 32))
    return encoded(image)


def pixels(content: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(np.float64)


def edited(client: OpenAI, **changes: Any) -> NDArray[np.float64]:
    knobs = {"seed": 3, "num_inference_steps": 4, "strength": 0.5} | changes.pop("extra", {})
    arguments = {"model": "tiny-xl", "image": halves(), "prompt": "a red cat", "extra_body": knobs} | changes
    answer = client.images.edit(**arguments)
    assert answer.data is not None
    return pixels(base64.b64decode(answer.data[0].b64_json or ""))


def test_edits(client: OpenAI) -> None:
    first = edited(client)
    assert (edited(client) == first).all(), "the same request is the same picture"
    others = [
        edited(client, image=encoded(Image.new("RGB", (32, 32), "green"))),
        edited(client, extra={"strength": 1.0}),
        edited(client, extra={"seed": 4}),
        edited(client, prompt="a dog"),
    ]
    assert all((other != first).any() for other in others)


def test_what_the_mask_covers_is_painted(client: OpenAI) -> None:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    first, second = (edited(client, mask=encoded(mask), extra={"seed": seed, "strength": 1.0}) for seed in (1, 2))
    painted, kept = np.abs(first - second)[:, :12].mean(), np.abs(first - second)[:, 28:].mean()
    assert painted > 3 * kept, "two seeds differ where may be painted"


def test_an_enlarged_picture_is_that_of_the_published_pipeline(studio: ServerProcess, tmp_path: Path) -> None:
    """As README asks for it: by curl, and by the command line, which waits for the picture."""
    small = Image.open(io.BytesIO(halves())).resize((24, 16))
    small.save(tmp_path / "apple.png")
    submit, enlarge = block("sh", "darkroom upscale").strip().splitlines()
    submitted = json.loads(typed(["bash", "-euc"], studio, tmp_path, submit))
    typed(["bash", "-euc"], studio, tmp_path, enlarge)
    (job,) = studio.finished([submitted["id"]])
    assert job["state"] == "completed" and job["request"]["noise_level"] == 20
    ours = pixels((tmp_path / "large.png").read_bytes())
    assert ours.shape == (64, 96, 3)
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(studio.data.parent / "models" / "tiny-upscaler")

    def published(noise_level: int) -> NDArray[np.float64]:
        made = quiet(pipeline)(
            prompt="a red apple",
            image=small,
            noise_level=noise_level,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(1),
        )
        return np.asarray(made.images[0]).astype(np.float64)

    assert np.abs(ours - published(20)).max() <= 1
    assert np.abs(ours - published(0)).max() > 1


def test_partial_pictures_come_before_the_picture(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            model="tiny-xl",
            prompt="a dog",
            stream=True,
            partial_images=3,
            extra_body={"seed": 1, "num_inference_steps": 40},
        )
    )
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]
    shown = [pixels(base64.b64decode(event.b64_json)) for event in events]
    assert all(picture.shape == shown[-1].shape for picture in shown)
    assert len({picture.tobytes() for picture in shown}) == 4, "each is another"
    assert [event.step for event in events[:3]] == [10, 20, 30]  # type: ignore[union-attr]


def test_partial_pictures_resemble_the_picture_more_and_more(shipped: ServerProcess) -> None:
    with OpenAI(base_url=f"{shipped.url}/v1", api_key="none") as openai:
        distances: list[list[float]] = []
        for seed in range(1, 9):
            stream = openai.images.generate(
                model="emoji-xl", prompt="fox, 3d", stream=True, partial_images=3, extra_body={"seed": seed}
            )
            *shown, last = [pixels(base64.b64decode(event.b64_json)).astype(float) for event in stream]
            if len(shown) == 3:  # a preview may be lost on the way to a busy server
                distances.append([float(np.abs(picture - last).mean()) for picture in shown])
            if len(distances) == 3:
                break
    assert len(distances) == 3
    first, second, third = np.mean(distances, axis=0)
    assert first > second > third > 0, distances


def test_the_stream_and_the_answer_are_one_picture(client: OpenAI) -> None:
    knobs: dict[str, Any] = {"seed": 5, "num_inference_steps": 4}
    *_, last = client.images.generate(model="tiny-xl", prompt="x", stream=True, partial_images=1, extra_body=knobs)
    plain = client.images.generate(model="tiny-xl", prompt="x", extra_body=knobs)
    assert plain.data is not None and last.b64_json == plain.data[0].b64_json, "to be watched changes nothing"


def test_a_clip(client: OpenAI, studio: ServerProcess) -> None:
    av = pytest.importorskip("av")
    knobs: dict[str, Any] = {"seed": 1, "num_inference_steps": 2, "fps": 6}
    size = studio.http.get("/v1/models/tiny-svd").json()["sizes"][0]
    video = client.videos.create_and_poll(
        model="tiny-svd", prompt="", size=size, input_reference=("a.png", halves(), "image/png"), extra_body=knobs
    )
    assert video.status == "completed", video.error
    request = studio.job(video.id)["request"]
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as clip:
        (stream,) = clip.streams.video
        frames = list(clip.decode(stream))
    assert len(frames) == request["frames"] and stream.average_rate == 6
    assert f"{frames[0].width}x{frames[0].height}" == size
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    spritesheet = client.videos.download_content(video.id, variant="spritesheet").read()
    assert pixels(thumbnail).size and pixels(spritesheet).size
    assert [one.id for one in client.videos.list()] == [video.id]
    part = studio.http.get(f"/v1/videos/{video.id}/content", headers={"range": "bytes=4-7"})
    assert part.status_code == 206 and part.content == content[4:8] == b"ftyp"
    assert client.videos.delete(video.id).deleted and not list(client.videos.list())
