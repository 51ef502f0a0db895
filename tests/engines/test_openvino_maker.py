"""Networks compiled by OpenVINO: made once, found again, and never kept when they compute something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.networks import networks_of
from engines.openvino_maker import OpenVinoMaker, build_openvino, openvino_key
from engines.prepare import graph_key
from tests.support.openvino import needs_openvino
from tests.support.tiny_xl import randomise

pytestmark = [needs_openvino, pytest.mark.timeout(600)]  # an export: seconds of one core, of a busy one a minute
NAME = "vae/decoder"


@pytest.fixture
def maker(sdxl_folder: Path, cache: EngineCache) -> OpenVinoMaker:
    return OpenVinoMaker(sdxl_folder, cache, threads=1)


def test_made_once_found_again_and_discarded(maker: OpenVinoMaker, cache: EngineCache) -> None:
    network = maker.networks()[NAME]
    assert set(maker.networks()) == {"unet", NAME, "vae/encoder"}
    assert maker.find(NAME) is None
    path = maker.build(NAME, [])
    session = maker.open(path)
    assert session.signature == network.signature and session.numerics == maker.numerics(path)
    (made,) = (entry for entry in cache.entries() if entry.path == path.parent)
    assert made.key == openvino_key(network) and made.key.digest != graph_key(network).digest
    assert made.key.architecture != "any" and "openvino-2" in made.key.libraries
    assert maker.find(NAME) == maker.build(NAME, []) == path
    maker.discard(NAME, path)
    assert maker.find(NAME) is None and cache.find(graph_key(network)) is not None


def test_what_computes_something_else_is_not_kept(sdxl_folder: Path, maker: OpenVinoMaker, cache: EngineCache) -> None:
    network = networks_of(sdxl_folder)[NAME]
    other = replace(network, load=lambda: randomise(network.load(), seed=9))
    with pytest.raises(RuntimeError, match=r"the largest error against torch is \d"):
        build_openvino(other, cache)
    assert maker.find(NAME) is None
