"""Opening models and moving their networks: in the background, within the limit, shared, again after a failure."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from models.spec.model import ModelSpec
from service.jobs.job import Adapter
from service.settings import Settings
from service.worker import lazy
from service.worker.batch import Stage
from service.worker.lazy import LazyNetwork, LoadFailed
from service.worker.loaded import LoadedModel, Role
from service.worker.opening import load_model
from service.worker.residency import Residency
from tests.support.rig import Rig


class Shelf:
    """Models of made-up networks, opened and loaded when they are let, and what was read from it."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.read = model, list[str]()
        self.open, self.gate = threading.Event(), threading.Event()
        self.open.set()
        self.gate.set()
        self.errors: dict[str, Exception] = {}
        self.opened = 0

    def network(self, identity: str) -> LazyNetwork[Any]:
        def load() -> object:
            assert self.gate.wait(60)
            if identity in self.errors:
                raise self.errors[identity]
            self.read.append(identity)
            return object()

        return LazyNetwork(identity, 4 if identity.startswith("unet") else 1, load)

    def __call__(self, spec: Any) -> LoadedModel:
        """``spec`` is the model's name here, and its UNet's; the rest is common to all."""
        self.opened += 1
        assert self.open.wait(60)
        if spec in self.errors:
            raise self.errors[spec]
        vae = self.network("vae")
        networks: dict[Role, LazyNetwork[Any]] = {
            "conditioner": self.network("text"), "denoiser": self.network(f"unet-{spec}"),
            "decoder": vae, "encoder": vae, "fast decoder": self.network("small"),
        }  # fmt: skip
        return replace(self.model, networks=networks)


@pytest.fixture
def shelf(loaded: LoadedModel) -> Shelf:
    return Shelf(loaded)


@pytest.fixture
def make(shelf: Shelf) -> Iterator[Callable[..., Residency]]:
    made: list[Residency] = []

    def residency(limit_bytes: int | None = None, **options: Any) -> Residency:
        specs: Any = {name: name for name in "abc"}
        made.append(Residency(specs, shelf, limit_bytes, **options))
        return made[-1]

    yield residency
    for each in made:
        each.close()


def loaded_up(residency: Residency, timeout_s: float = 60.0) -> None:
    """Wait for the load that is under way."""
    end = time.monotonic() + timeout_s
    while residency.memory.loading:
        assert time.monotonic() < end
        time.sleep(0.001)


def held(residency: Residency) -> set[str]:
    return {name for name, home in residency.memory.networks.items() if home.since is not None}


def test_a_model_is_opened_once_and_in_the_background(make: Callable[..., Residency], shelf: Shelf) -> None:
    shelf.open.clear()
    residency = make()
    first, second = residency.request("a"), residency.request("a")
    assert not first.done() and residency.resident == ()
    shelf.open.set()
    assert first.result(60) is second.result(60) is residency.request("a").result(60)
    assert shelf.opened == 1 and residency.resident == ("a",)


def test_a_model_that_cannot_be_opened_is_tried_again(make: Callable[..., Residency], shelf: Shelf) -> None:
    residency = make()
    shelf.errors["a"] = ValueError("weights are missing")
    with pytest.raises(ValueError, match="weights are missing"):
        residency.request("a").result(60)
    assert residency.resident == ()
    shelf.errors.clear()
    residency.request("a").result(60)
    assert residency.resident == ("a",)


def test_an_unknown_model(make: Callable[..., Residency]) -> None:
    with pytest.raises(KeyError):
        make().request("tiny-xl")


def test_what_fits_is_loaded_with_the_model_and_what_it_shares_is_loaded_once(
    make: Callable[..., Residency], shelf: Shelf
) -> None:
    loads: list[tuple[float, int]] = []
    residency = make(on_load=lambda seconds, evicted: loads.append((seconds, evicted)))
    first, second = residency.request("a").result(60), residency.request("b").result(60)
    assert sorted(shelf.read) == ["text", "unet-a", "unet-b", "vae"], "and no small decoder, which few rows need"
    assert first.networks["decoder"].get() is second.networks["encoder"].get()
    assert residency.resident == ("a", "b") and residency.memory.bytes(held(residency)) == 10
    assert [evicted for _, evicted in loads] == [0, 0] and all(seconds >= 0 for seconds, _ in loads)


def test_a_network_that_cannot_be_loaded_with_its_model_is_the_models_failure(
    make: Callable[..., Residency], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "FAILED_FOR_S", 0.0)
    residency = make()
    shelf.errors["unet-a"] = ValueError("a key is missing")
    with pytest.raises(LoadFailed, match="a key is missing"):
        residency.request("a").result(60)
    residency.request("b").result(60)
    shelf.errors.clear()
    residency.request("a").result(60)
    assert set(residency.resident) == {"a", "b"}


def test_within_a_limit_the_second_model_waits_until_it_is_chosen(make: Callable[..., Residency], shelf: Shelf) -> None:
    loads: list[int] = []
    residency = make(limit_bytes=7, on_load=lambda _, evicted: loads.append(evicted))
    residency.request("a").result(60)
    second = residency.request("b").result(60)
    assert held(residency) == {"text", "vae", "unet-a"} and residency.resident == ("a",)
    shelf.gate.clear()
    residency.start(["unet-b"], ["unet-a"])
    assert residency.memory.loading == {"unet-b"} and held(residency) == {"text", "vae"}
    residency.start(["unet-a"], [])
    assert residency.memory.loading == {"unet-b"}, "one at a time: that choice was stale"
    shelf.gate.set()
    loaded_up(residency)
    assert residency.resident == ("b",) and second.networks["denoiser"].home.since is not None
    assert shelf.read.count("unet-a") == shelf.read.count("unet-b") == 1
    assert loads == [0, 1]


def test_a_load_that_fails_is_told_to_whoever_runs_on_it(
    make: Callable[..., Residency], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "FAILED_FOR_S", 600.0)
    residency = make(limit_bytes=7)
    residency.request("a").result(60)
    second = residency.request("b").result(60)
    shelf.errors["unet-b"] = ValueError("a key is missing")
    residency.start(["unet-b"], ["unet-a"])
    loaded_up(residency)
    assert "unet-b" in held(residency), "nobody waits for it any more"
    with pytest.raises(LoadFailed, match="a key is missing"):
        second.networks["denoiser"].get()


def test_a_model_whose_stage_has_no_room_at_all_is_refused(make: Callable[..., Residency]) -> None:
    make(limit_bytes=4).request("a").result(60)  # stage by stage it runs
    with pytest.raises(ValueError, match=r"memory_bytes is 3, and model 'tiny-xl' needs 4 to denoise"):
        make(limit_bytes=3).request("a").result(60)


def test_an_engine_that_was_made_with_its_model_leaves_where_there_is_no_room(
    make: Callable[..., Residency], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shelf, "network", lambda identity: LazyNetwork(identity, 4 if "unet" in identity else 1, object, object())
    )
    residency = make(limit_bytes=8)  # and the small decoder is one
    residency.request("a").result(60)
    assert held(residency) >= {"text", "vae", "unet-a"}
    residency.request("b").result(60)
    assert "unet-a" in held(residency) and "unet-b" not in held(residency)
    assert residency.memory.bytes(held(residency)) <= 8


def test_what_a_row_requires_by_its_stage(shelf: Shelf) -> None:
    model = shelf("a")
    assert model.requirements(Stage.ENCODE) == (("text",), ("unet-a", "vae"))
    assert model.requirements(Stage.ENCODE, from_picture=True) == (("text", "vae"), ("unet-a", "vae"))
    assert model.requirements(Stage.DENOISE, fast_decoder=True) == (("unet-a",), ("small",))
    assert model.requirements(Stage.DECODE) == (("vae",), ())
    assert replace(model, networks={}).requirements(Stage.ENCODE) == ((), ())


class Sets:
    """Models with adapters: each has a UNet of its own, and the rest in common with the plain model."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.files = shelf, 1
        self.opened: list[tuple[str, ...]] = []

    def version(self, adapters: Any) -> tuple[object, ...]:
        return (self.files,) * len(adapters)

    def open(self, spec: Any, adapters: Any) -> LoadedModel:
        self.opened.append(tuple(adapter.name for adapter in adapters))
        plain = self.shelf(spec)
        own = "-".join(["unet", spec, *self.opened[-1], str(self.files)])
        return replace(plain, networks={**plain.networks, "denoiser": self.shelf.network(own)})


def sets_of(*names: str) -> tuple[Adapter, ...]:
    return tuple(Adapter(name=name) for name in names)


def test_a_set_is_opened_once_in_any_order_and_anew_when_a_file_changes(
    make: Callable[..., Residency], shelf: Shelf
) -> None:
    sets = Sets(shelf)
    residency = make(adapted=sets)
    plain, one = residency.request("a"), residency.request("a", sets_of("ink", "wool"))
    assert residency.request("a", sets_of("wool", "ink")) is one is not plain
    assert plain.result(60).networks["denoiser"].identity != one.result(60).networks["denoiser"].identity
    assert sets.opened == [("ink", "wool")] and residency.resident == ("a",)
    sets.files = 2
    assert residency.request("a", sets_of("ink", "wool")) is not one


def test_a_set_is_opened_anew_with_its_model(make: Callable[..., Residency], shelf: Shelf) -> None:
    sets = Sets(shelf)
    residency = make(adapted=sets)
    residency.request("a").result(60)
    before = residency.request("a", sets_of("ink"))
    before.result(60)
    assert residency.opened == {"a"}
    residency.reopen(["a"])
    after = residency.request("a", sets_of("ink"))
    assert after is not before and after.result(60) and len(sets.opened) == 2


def test_a_model_that_nobody_asked_for_is_not_opened_with_its_set(make: Callable[..., Residency], shelf: Shelf) -> None:
    sets = Sets(shelf)
    residency = make(adapted=sets)
    residency.request("a", sets_of("ink")).result(60)
    residency.request("b").result(60)
    residency.reopen(["a", "b"])
    assert [key.name for key in residency._models] == ["b"], "the one that was open without adapters"


def test_a_model_that_is_replaced_on_disk_is_served_anew(sdxl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny-xl"
    shutil.copytree(sdxl_folder, folder)

    def load(spec: ModelSpec) -> LoadedModel:
        return load_model(spec, Settings(backend="torch", threads=1))

    rig = Rig(tmp_path / "worker", load(ModelSpec.read(folder)), load)

    def made() -> tuple[tuple[str, ...], str]:
        """The picture's name, which is the hash of its bytes, and what they depend on."""
        job = rig.submit(seed=3, num_inference_steps=2)
        rig.finish(job)
        (result,) = rig.get(job).results
        return result.artifacts, result.numerics_id

    try:
        first, again = made(), made()
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
        rig.models["tiny-xl"] = ModelSpec.read(folder)  # as the catalogue does
        rig.residency.reopen(["tiny-xl"])
        other = made()
    finally:
        rig.close()
    assert first == again
    assert first[0] != other[0] and first[1] != other[1]


def test_idle_sets_are_closed_but_the_last_few(make: Callable[..., Residency], shelf: Shelf) -> None:
    sets = Sets(shelf)
    residency = make(adapted=sets)
    plain = residency.request("a")
    asked = [sets_of(name) for name in "pqrstuv"]
    for adapters in asked:
        residency.request("a", adapters).result(60)
    assert held(residency) >= {"vae", "text", "unet-a", *(f"unet-a-{name}-1" for name in "pqrstuv")}
    residency.close_idle([("a", ()), ("a", asked[0])])
    kept = {"unet-a", "unet-a-p-1", *(f"unet-a-{name}-1" for name in "tuv")}
    assert set(residency.memory.networks) == {"vae", "text", "small", *kept} and kept < held(residency)
    residency.request("a", asked[1]).result(60)
    assert residency.request("a") is plain and sets.opened.count(("q",)) == 2
    in_use = [("a", adapters) for adapters in asked]
    residency.close_idle(in_use)
    assert "unet-a-p-1" in residency.memory.networks, "in use, although there are more than are kept"


def test_a_set_without_room_leaves_nothing(make: Callable[..., Residency], shelf: Shelf) -> None:
    residency = make(limit_bytes=3, adapted=Sets(shelf))
    with pytest.raises(ValueError, match="memory_bytes is 3"):
        residency.request("a", sets_of("ink")).result(60)
    assert residency.memory.networks == {}
