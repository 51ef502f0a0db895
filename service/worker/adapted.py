"""Models with adapters (LoRA) in their weights.

A set of adapters makes a model of its own: the networks that it changes are read once more and fused with it; those
that it leaves alone are shared with the plain model, whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from models.adapters.file import DENOISER, read_adapter
from models.adapters.fuse import Weighted, adapters_id
from models.adapters.whole import fuse_denoiser, fuse_text_encoders, parts_changed, reread
from models.families.text_to_image import TextConditioner, TextToImageModel
from models.spec.model import ModelSpec
from service.jobs.job import Adapter
from service.settings import Settings, installed_adapters
from service.worker.lazy import LazyConditioner, LazyDenoisers
from service.worker.loaded import LoadedModel, Role
from service.worker.numerics import Numerics, numerics_id
from service.worker.opening import load_model
from service.worker.residency import Version

_Fuse = Callable[[Any, ModelSpec, Sequence[Weighted]], None]


class AdapterUnusable(ValueError):
    """An adapter is not there, is none that can be read, or does not fit the model."""


class AdaptedModels:
    """Opens models with sets of adapters. They run on torch, whatever the plain ones run on: a set would need engines
    of its own, whose making takes longer than most sets are used."""

    def __init__(
        self, open_plain: Callable[[ModelSpec], LoadedModel], installed: Callable[[], Mapping[str, Path]]
    ) -> None:
        """
        Args:
            open_plain: opens a model on torch, without adapters.
            installed: the adapters that are there now, by name.
        """
        self._open_plain, self._installed = open_plain, installed
        self._plain: dict[str, LoadedModel] = {}

    def version(self, adapters: Sequence[Adapter]) -> Version:
        """Another one whenever one of their files is."""
        installed = self._installed()
        return tuple(_stamp(installed.get(adapter.name)) for adapter in adapters)

    def open(self, spec: ModelSpec, adapters: Sequence[Adapter]) -> LoadedModel:
        """A model with a set of adapters; its networks are read and fused when they are first used.

        Raises:
            AdapterUnusable: one of them cannot be used with this model.
            ValueError: a file of the model is missing, or cannot be what its name says.
        """
        if (known := self._plain.get(spec.name)) is None or known.model.spec != spec:  # another may have taken the name
            self._plain[spec.name] = self._open_plain(spec)
        files = self._files(adapters)
        try:
            weighted = [Weighted(read_adapter(files[adapter.name]), adapter.scale) for adapter in adapters]
            changed = parts_changed(spec, weighted)
        except ValueError as error:
            raise AdapterUnusable(_without_folders(str(error), files.values())) from error
        return _with_set(self._plain[spec.name], weighted, changed)

    def _files(self, adapters: Sequence[Adapter]) -> Mapping[str, Path]:
        installed = self._installed()
        if missing := [adapter.name for adapter in adapters if adapter.name not in installed]:
            raise AdapterUnusable(
                f"adapter {missing[0]!r} is not installed; installed: {', '.join(installed) or 'none'}"
            )
        return {adapter.name: installed[adapter.name] for adapter in adapters}


def adapted_models(settings: Settings) -> AdaptedModels:
    """Those of an installation: its adapters are looked up anew for every request."""
    on_torch = settings.model_copy(update={"backend": "torch"})
    return AdaptedModels(partial(load_model, settings=on_torch), partial(installed_adapters, settings))


def _with_set(plain: LoadedModel, adapters: Sequence[Weighted], changed: frozenset[str]) -> LoadedModel:
    model, spec, identity = plain.model, plain.model.spec, adapters_id(adapters)
    files = {each.adapter.path: each.weight for each in adapters}  # open files would be too many with many sets
    networks = dict(plain.networks)

    def fused(role: Role, fuse: _Fuse) -> Any:
        networks[role] = plain.networks[role].derived(identity, lambda made: fuse(made, spec, reread(files, identity)))
        return networks[role]

    if DENOISER in changed:
        model = replace(model, denoisers=LazyDenoisers(fused("denoiser", fuse_denoiser)))
    if changed - {DENOISER} and isinstance(model, TextToImageModel):
        conditioner = LazyConditioner(fused("conditioner", fuse_text_encoders))
        model = replace(model, conditioner=cast(TextConditioner, conditioner))
    strict, fast = _with_id(plain.strict, identity), _with_id(plain.fast, identity)
    return replace(plain, model=model, strict=strict, fast=fast, networks=networks)


def _without_folders(message: str, files: Iterable[Path]) -> str:
    """Clients are told of adapters by name."""
    for file in files:
        message = message.replace(str(file), file.name)
    return message


def _with_id(numerics: Numerics, identity: str) -> Numerics:
    return replace(numerics, id=numerics_id({"plain": numerics.id, "adapters": identity}))


def _stamp(file: Path | None) -> tuple[int, int] | None:
    """What changes when a file does; None for one that is not there."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size)
