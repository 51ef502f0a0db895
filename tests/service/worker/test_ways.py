"""What runs where on a model with engines, and by which numerics; whole rows on them are in test_upgrades.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from engines.cache import EngineCache
from engines.life import Built, EngineFailed, EngineLife
from engines.maker import OnnxMaker
from engines.prepare import find
from engines.session import OnnxSession
from models.adapters.file import DENOISER
from models.adapters.whole import AdapterSet
from models.families.text_to_image import prepare
from service.settings import Settings
from service.worker.loaded import LoadedModel, Role, RowShape
from service.worker.opening import load_model
from service.worker.parking import modules_of
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


@pytest.mark.parametrize("names", [["text_encoder", "text_encoder_2"], ["text_encoder_2"], ["vae/encoder"]])
def test_towers_on_engines_say_what_they_say_on_torch(
    loaded: LoadedModel, sdxl_engines: Path, names: list[str]
) -> None:
    model = opened(loaded, sdxl_engines, OnnxMaker, names)
    expected = prepare(loaded.model, "a (red:1.3) cat", "", True, 32, 32)
    found = prepare(model.model, "a (red:1.3) cat", "", True, 32, 32)
    other = prepare(loaded.model, "a dog", "", True, 32, 32)
    for role in expected:
        pair = ((given[role].context, given[role].vector) for given in (found, other))
        (context, vector), (context_of_other, _) = pair
        torch.testing.assert_close(context, expected[role].context, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vector, expected[role].vector, atol=1e-5, rtol=1e-4)
        assert role == "negative" or (context_of_other - context).abs().max() > 1e-2
    conditioner = model.networks["conditioner"]
    on_torch = len(modules_of(conditioner.get()))
    assert on_torch == 2 - len({*names} & {"text_encoder", "text_encoder_2"})
    assert (conditioner.identity == loaded.networks["conditioner"].identity) is (on_torch == 2)
    assert torch.equal(found["positive"].context, expected["positive"].context) is (on_torch == 2)


def test_towers_on_engines_leave_the_memory(loaded: LoadedModel, sdxl_engines: Path) -> None:
    conditioner = opened(loaded, sdxl_engines, OnnxMaker, ["text_encoder"]).networks["conditioner"]
    there = weakref.ref(conditioner.get())
    conditioner.leave()
    gc.collect()
    assert there() is None and conditioner.parked_bytes == 0, "an engine has nothing that could be parked"
    assert conditioner.get() is not None


def test_a_tower_that_fails_is_dropped(
    loaded: LoadedModel, sdxl_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, maker = loaded.model.spec, OnnxMaker(loaded.model.spec.folder, EngineCache(sdxl_engines), 1)
    paths = find(spec.folder, maker.cache)
    life = EngineLife({name: Built(path) for name, path in paths.items()}, maker=maker)
    model = load_model(spec, Settings(backend="onnxruntime", threads=1), engines=life)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxSession, "__call__", lambda *_: torch.full((1, 1), torch.nan))
        with pytest.raises(EngineFailed, match="text_encoder holds what is no number"):
            prepare(model.model, "a red cat", "", True, 32, 32)
    assert life.states["text_encoder"] == "dropped" and life.states["unet"] == "engine"
    again = load_model(spec, Settings(backend="onnxruntime", threads=1), engines=life)
    assert len(modules_of(again.networks["conditioner"].get())) == 1
    assert prepare(again.model, "a red cat", "", True, 32, 32)["positive"].context.isfinite().all()


def test_towers_that_adapters_change_stay_on_torch(loaded: LoadedModel, sdxl_engines: Path) -> None:
    spec, cache = loaded.model.spec, EngineCache(sdxl_engines)

    def conditioner(*parts: str) -> str:
        adapters = AdapterSet((), "0123456789abcdef", frozenset(parts)) if parts else None
        maker = OnnxMaker(spec.folder, cache, 1, adapters=adapters)
        paths = {name: path for name in maker.networks() if (path := maker.find(name)) is not None}
        life = EngineLife({name: Built(path) for name, path in paths.items()}, maker=maker)
        settings = Settings(backend="onnxruntime", threads=1)
        return load_model(spec, settings, engines=life, adapters=adapters).networks["conditioner"].identity

    on_torch = loaded.networks["conditioner"].identity
    assert conditioner() == conditioner(DENOISER) != on_torch, "shared by the plain model and the set"
    assert conditioner(DENOISER, "text_encoder") == conditioner("text_encoder") == f"{on_torch}+0123456789abcdef"


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
