"""Adapters (LoRA) by the names that requests give them: found, checked, and put into a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from models.adapters.file import read_adapter
from models.adapters.fuse import Weighted
from models.adapters.whole import AdapterSet
from models.spec.model import ModelSpec
from service.jobs.job import Adapter
from service.worker.loaded import LoadedModel
from service.worker.residency import Version


class AdapterUnusable(ValueError):
    """An adapter is not there, is none that can be read, or does not fit the model."""


class AdaptedModels:
    """Opens models with sets of adapters."""

    def __init__(
        self, load: Callable[[ModelSpec, AdapterSet], LoadedModel], installed: Callable[[], Mapping[str, Path]]
    ) -> None:
        """
        Args:
            load: opens a model with a set that fits it.
            installed: the adapters that are there now, by name.
        """
        self._load, self._installed = load, installed

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
        files = self._files(adapters)
        try:
            weighted = [Weighted(read_adapter(files[adapter.name]), adapter.scale) for adapter in adapters]
            chosen = AdapterSet.of(spec, weighted)
        except ValueError as error:
            raise AdapterUnusable(_without_folders(str(error), files.values())) from error
        return self._load(spec, chosen)

    def _files(self, adapters: Sequence[Adapter]) -> Mapping[str, Path]:
        installed = self._installed()
        if missing := [adapter.name for adapter in adapters if adapter.name not in installed]:
            raise AdapterUnusable(
                f"adapter {missing[0]!r} is not installed; installed: {', '.join(installed) or 'none'}"
            )
        return {adapter.name: installed[adapter.name] for adapter in adapters}


def _without_folders(message: str, files: Iterable[Path]) -> str:
    """Clients are told of adapters by name."""
    for file in files:
        message = message.replace(str(file), file.name)
    return message


def _stamp(file: Path | None) -> tuple[int, int] | None:
    """What changes when a file does; None for one that is not there."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size)
