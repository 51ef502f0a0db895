"""Input pictures: what is read, what it becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from service.jobs.artifacts import ArtifactStore
from service.jobs.job import ImageToImage, Inpainting
from service.worker.input import NO_INPUTS, mask_tensor, picture_tensor, read_inputs
from tests.support.rig import a_picture, make_clip, make_request, make_upscaling, png

SAME = make_request().model_dump(exclude={"task"})


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def test_each_task_has_its_inputs(artifacts: ArtifactStore) -> None:
    grey = a_picture(3)[:, :, 0]
    image, mask = artifacts.put(png(a_picture())), artifacts.put(png(grey))
    assert read_inputs(make_request(), artifacts) is NO_INPUTS
    for request in (ImageToImage(**SAME, image=image, strength=0.5), make_clip(image)):
        found = read_inputs(request, artifacts)
        assert found.image is not None and np.array_equal(found.image, a_picture()) and found.mask is None
    small = artifacts.put(png(a_picture(size=(11, 16))))
    found = read_inputs(make_upscaling(small, width=44), artifacts)
    assert found.image is not None and found.image.shape == (16, 11, 3) and found.mask is None
    both = read_inputs(Inpainting(**SAME, image=image, mask=mask), artifacts)
    assert both.image is not None and both.mask is not None
    assert np.array_equal(both.image, a_picture()) and np.array_equal(both.mask, grey)


def test_what_is_refused(artifacts: ArtifactStore) -> None:
    def read(image: str) -> None:
        read_inputs(ImageToImage(**SAME, image=image, strength=0.5), artifacts)

    with pytest.raises(ValueError, match=f"image {'0' * 64} is not there any more"):
        read("0" * 64)
    with pytest.raises(ValueError, match="image is 16x32, expected 32x32"):
        read(artifacts.put(png(a_picture(size=(16, 32)))))
    with pytest.raises(ValueError, match="image is 16x32, expected 16x16"):
        read_inputs(make_upscaling(artifacts.put(png(a_picture(size=(16, 32))))), artifacts)
    with pytest.raises(ValueError, match="cannot be read"):
        read(artifacts.put(b"no picture"))


def test_values() -> None:
    levels = np.array([[[0, 255, 51]]], np.uint8)
    assert torch.allclose(picture_tensor(levels), torch.tensor([-1.0, 1.0, -0.6])[:, None, None])
    assert torch.allclose(mask_tensor(levels[:, :, 2]), torch.tensor([[[0.2]]]))
