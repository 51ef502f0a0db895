"""What a row needs of an open model, and which of its ways takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from service.worker.batch import Stage
from service.worker.lazy import LazyNetwork
from service.worker.loaded import LoadedModel, RowShape
from service.worker.picture import Picture
from service.worker.runner import Runner
from tests.support.rig import make_request


def widths(*taken: int) -> Callable[[RowShape], bool]:
    return lambda shape: shape.latent[-1] in taken


@pytest.fixture
def ways(loaded: LoadedModel) -> LoadedModel:
    """A model with three ways, of which the last takes all."""
    unet = LazyNetwork("another unet", 1, dict)
    narrow = replace(loaded, takes=widths(16), networks={**loaded.networks, "denoiser": unet})
    wide = replace(loaded, takes=widths(16, 32))
    return replace(narrow, otherwise=(wide, loaded))


def test_the_first_way_that_takes_a_row_is_its_own(ways: LoadedModel, loaded: LoadedModel) -> None:
    found = [ways.way(RowShape((4, 16, width), 20, 2)) for width in (16, 32, 48)]
    assert found[0] is ways and found[1] is ways.otherwise[0] and found[2] is loaded
    assert loaded.way(RowShape((4, 16, 48), 20, 2)) is loaded and loaded.ways == (loaded,)


def test_networks_of_all_ways_are_known_once(ways: LoadedModel, loaded: LoadedModel) -> None:
    plain = {network.identity for network in loaded.networks.values()}
    identities = [network.identity for network in ways.all_networks]
    assert sorted(identities) == sorted({*plain, "another unet"})
    assert "another unet" in ways.core and ways.otherwise[1].core == loaded.core
    needs, keeps = ways.requirements(Stage.DENOISE)
    assert needs == ("another unet",) and keeps == (loaded.networks["decoder"].identity,)


@pytest.mark.parametrize(("guidance", "lanes"), [(3.0, 2), (1.0, 1)])
def test_the_shape_of_a_row(loaded: LoadedModel, guidance: float, lanes: int) -> None:
    piece = Picture(make_request(guidance_scale=guidance), 7, 0.0, loaded, loaded.strict)
    Runner().encode([piece])
    assert piece.row is not None
    assert RowShape.of(piece.row) == RowShape((4, 16, 16), piece.row.tokens, lanes)
