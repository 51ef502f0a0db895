"""The installed models as they are now: folders may come and go while a server or worker runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView

from models.spec.files import stamp
from models.spec.model import ModelSpec
from service.settings import ZOO, Settings, installed_models

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

_Signature = tuple[tuple[str, str], ...]


class Catalogue(Mapping[str, ModelSpec]):
    """The installed models by name, the default one first; who reads it gets what was there in the last two seconds.

    While a folder cannot be read, for it is perhaps still being copied, everything stays as it was.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            settings: name the folders.
            clock: seconds.

        Raises:
            ValueError: as :func:`service.settings.installed_models`.
        """
        self._settings, self._clock = settings, clock
        self._looked_at, self._signature = clock(), _signature(settings)
        self._models = self._told = installed_models(settings)
        self._fault = ""

    def __getitem__(self, name: str) -> ModelSpec:
        """The model of that name."""
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        """Names; as all that follows, of one moment."""
        return iter(self._now())

    def __len__(self) -> int:
        """How many are installed."""
        return len(self._now())

    def keys(self) -> KeysView[str]:
        """Names."""
        return self._now().keys()

    def values(self) -> ValuesView[ModelSpec]:
        """Models."""
        return self._now().values()

    def items(self) -> ItemsView[str, ModelSpec]:
        """Names and models."""
        return self._now().items()

    def replaced(self) -> list[str]:
        """Names of the models that have become others since this was asked last: other files, or another folder."""
        before, self._told = self._told, self._now()
        return [name for name, spec in self._told.items() if name in before and before[name] != spec]

    def _now(self) -> dict[str, ModelSpec]:
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return self._models

    def _look(self) -> None:
        signature = _signature(self._settings)
        if signature == self._signature:
            return
        try:
            found = installed_models(self._settings)
        except (OSError, ValueError) as error:
            if str(error) != self._fault:
                self._fault = str(error)
                logger.warning("the models stay as they were", extra={"error": self._fault})
            return
        self._signature, self._fault = signature, ""
        logger.info("the models have changed", extra={"models": list(found)})
        self._models = found


def _signature(settings: Settings) -> _Signature:
    """What is another one when a model comes, goes or is replaced."""
    indexes = [index for folder in (ZOO, *settings.models) for index in folder.glob("*/model_index.json")]
    indexes += [index for folder in settings.models if (index := folder / "model_index.json").exists()]
    return tuple(sorted((str(index), stamp([index.parent])) for index in indexes))
