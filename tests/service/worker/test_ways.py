"""What runs where on a model with engines, and by which numerics; whole rows on them are in test_upgrades.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.cache import EngineCache
from engines.life import Built, EngineLife
from engines.maker import OnnxMaker
from engines.prepare import find
from service.settings import Settings
from service.worker.loaded import LoadedModel, Role, RowShape
from service.worker.opening import load_model
from tests.support.fixed import FixedMaker

pytestmark = pytest.mark.timeout(600)  # the first of these tests exports: 20 s of one core, of a busy one minutes
FITS = RowShape((4, 16, 16), 20, 2)


def opened(
    loaded: LoadedModel, engines: Path, kind: type[OnnxMaker] = FixedMaker, names: Sequence[str] | None = None
) -> LoadedModel:
    """The model on the engines of a kind; on those of these networks alone, if they are named."""
    spec = loaded.model.spec
    maker = kind(spec.folder, EngineCache(engines), 1)
    paths = find(spec.folder, maker.cache)
    life = EngineLife({name: Built(paths[name]) for name in names or maker.networks()}, maker=maker)
    return load_model(spec, Settings(backend="onnxruntime", threads=1), engines=life)


def test_engines_of_free_shapes_have_one_way(loaded: LoadedModel, sdxl_engines: Path) -> None:
    model = opened(loaded, sdxl_engines, OnnxMaker)
    assert model.otherwise == () and model.takes(RowShape((4, 3, 99), 1000, 99)) and model.strict == model.fast


def test_engines_of_fixed_shapes_take_what_fits(loaded: LoadedModel, sdxl_engines: Path) -> None:
    model = opened(loaded, sdxl_engines)
    strict, fast = model.strict, model.fast
    assert (strict.padded_lanes, strict.max_lanes, strict.lone_decode) == (8, 8, True)
    assert (fast.padded_lanes, fast.max_lanes, fast.lone_decode) == (0, 8, True), "one picture is a pass of the decoder"
    assert [len(model.ways), model.ways.index(model.way(FITS))] == [4, 0]
    others = {
        RowShape((4, 16, 16), 40, 2): 2,  # the decoder alone
        RowShape((4, 16, 32), 20, 2): 3,
        RowShape((4, 16, 16), 20, 9): 2,
        RowShape((3, 4, 16, 16), 20, 2, frozenset({3})): 3,
    }
    assert {shape: model.ways.index(model.way(shape)) for shape in others} == others
    assert len({numerics.id for way in model.ways for numerics in (way.strict, way.fast)}) == 8


@pytest.mark.parametrize(("name", "role", "lanes"), [("unet", "denoiser", 8), ("vae/decoder", "decoder", 16)])
def test_one_engine_alone(loaded: LoadedModel, sdxl_engines: Path, name: str, role: Role, lanes: int) -> None:
    model = opened(loaded, sdxl_engines, names=[name])
    assert len(model.ways) == 2 and model.way(FITS) is model and model.ways[1].strict == loaded.strict
    assert model.fast.max_lanes == lanes and model.fast.lone_decode is (role == "decoder")
    assert model.strict.padded_lanes == 8 and model.strict.lone_decode
    changed = [each for each in model.networks if model.networks[each].identity != loaded.networks[each].identity]
    assert changed == [role]
