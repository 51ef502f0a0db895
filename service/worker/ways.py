"""The networks that a model's rows run on: torch's, and engines in the place of those that have one.

An engine of free shapes takes every row. One of fixed shapes takes those that fit, so a model with such engines has
several ways: on all of them, on some, and on torch. Which one a row goes is decided once, when it begins, by its shape
alone; its numerics id says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from engines.buckets import Buckets
from engines.call import Output, Session
from engines.life import EngineLife
from engines.maker import Maker
from engines.networks import is_tower
from models.conditioners.condition import TowerOf
from models.families.row import Denoiser
from models.families.text_to_image import Decoder
from models.tiling import TILE
from service.worker.lazy import LazyDenoisers, LazyNetwork
from service.worker.loaded import Role, RowShape, takes_all
from service.worker.numerics import MAX_LANES, Numerics, network_id, numerics_id

T = TypeVar("T")

DECODER = "vae/decoder"


@dataclass(frozen=True)
class Parts:
    """A model's networks on one way, and what calls them."""

    networks: dict[Role, LazyNetwork[Any]]
    denoisers: Mapping[str, Denoiser]
    decode: Decoder
    """Latents to pictures; of clips one chunk."""
    moments: Callable[[Tensor], Tensor]
    """Pictures to mean and log-variance of their latents, one behind the other."""
    fast_decode: Decoder | None
    """As ``decode``, by the small decoder where the model has one."""
    condition: Callable[[TowerOf], Any] | None
    """Loads the conditioner with other towers; None where adapters are in its own, which stay."""
    strict: Numerics
    fast: Numerics
    takes: Callable[[RowShape], bool] = takes_all
    """Whether these networks run such a row."""
    capturable: bool = True
    """Whether a CUDA graph may hold calls of its denoisers."""


def ways(on_torch: Parts, variants: Sequence[str], life: EngineLife, maker: Maker) -> list[Parts]:
    """The ways of a model with engines, in the order in which a row looks for one that takes it.

    Args:
        on_torch: all networks on torch.
        variants: names of the denoiser and its variants, which run on engines together or not at all.
        life: the model's engines.
        maker: what they are of.
    """
    paths = life.paths
    if set(variants) - set(paths):
        paths = {name: path for name, path in paths.items() if name not in variants}
    fixed = {name: buckets for name, path in paths.items() if (buckets := maker.buckets(path)) is not None}
    together = [name for name in fixed if name not in variants[1:]]
    found = []
    for count in range(len(together) + 1):
        for left_out in combinations(reversed(together), count):
            gone = {*left_out, *(variants if variants[0] in left_out else ())}
            kept = {name: path for name, path in paths.items() if name not in gone}
            of_kept = {name: fixed[name] for name in kept if name in fixed}
            found.append(_Way(on_torch, variants, life, maker, kept, of_kept).parts())
    return found


@dataclass(frozen=True)
class _Way:
    """One way of a model: on the engines of ``paths``, and on torch."""

    on_torch: Parts
    variants: Sequence[str]
    life: EngineLife
    maker: Maker
    paths: Mapping[str, Path]
    buckets: Mapping[str, Buckets]
    """Of those engines that have fixed shapes."""

    def parts(self) -> Parts:
        on_torch, networks = self.on_torch, dict(self.on_torch.networks)
        if on_engines := self.variants[0] in self.paths:
            networks["denoiser"] = self._network(self.variants, self._denoisers)
        watched, lazy = self.life.guarded if on_engines else self.life.recorded, LazyDenoisers(networks["denoiser"])
        denoisers = {name: cast(Denoiser, watched(name, partial(_evaluate, lazy, name))) for name in self.variants}
        fast = on_torch.fast_decode
        decode = self._served(networks, "decoder", DECODER, on_torch.decode)
        moments = self._served(networks, "encoder", "vae/encoder", on_torch.moments)
        fast_decode = None if fast is None else self._served(networks, "fast decoder", "vae_tiny/decoder", fast)
        capturable = on_torch.capturable and not on_engines and not any(map(self.life.calibrates, self.variants))
        if on_torch.condition is not None:
            networks["conditioner"] = self._conditioner(on_torch.condition)
        numerics = self._numerics()
        return replace(
            on_torch, networks=networks, denoisers=denoisers, decode=decode, moments=moments, fast_decode=fast_decode,
            strict=numerics[0], fast=numerics[1], takes=self._takes, capturable=capturable,
        )  # fmt: skip

    def _conditioner(self, load: Callable[[TowerOf], Any]) -> LazyNetwork[Any]:
        """Its towers on those engines that there are. It takes as much memory as on torch, or little more, and like any
        engine it is not parked."""
        whole, towers = self.on_torch.networks["conditioner"], [name for name in self.paths if is_tower(name)]
        if not towers and not any(map(is_tower, self.life.states)):
            return whole
        bytes_of = " ".join([whole.identity, *(self.maker.numerics(self.paths[name]) for name in towers)])
        identity = network_id("conditioner", bytes_of, self.maker.name) if towers else whole.identity

        def tower_of(name: str, on_torch: Callable[[], Any]) -> Any:
            if name in self.paths:
                return self.life.guarded(name, self._session(name))
            return self.life.recorded(name, on_torch())

        return LazyNetwork(identity, whole.size_bytes, partial(load, tower_of))

    def _served(
        self, networks: dict[Role, LazyNetwork[Any]], role: Role, name: str, by_torch: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        if name not in self.paths:
            return cast(Callable[[Tensor], Tensor], self.life.recorded(name, by_torch))
        networks[role] = self._network([name], partial(self._session, name))
        return cast(Callable[[Tensor], Tensor], self.life.guarded(name, partial(_call, networks[role])))

    def _network(self, names: Sequence[str], load: Callable[[], T]) -> LazyNetwork[T]:
        bytes_of = " ".join(self.maker.numerics(self.paths[name]) for name in names)
        size = sum(self.maker.weight_bytes(name, self.paths[name]) for name in names)
        return LazyNetwork(network_id(names[0], bytes_of, self.maker.name), size, load)

    def _session(self, name: str) -> Session:
        return self.life.load(name, self.paths[name], self.maker)

    def _denoisers(self) -> Mapping[str, Session]:
        return {name: self._session(name) for name in self.variants}

    @property
    def _lanes(self) -> int | None:
        """The most lanes of one evaluation where the denoiser has fixed shapes; None where it has not."""
        return min((self.buckets[name].lanes for name in self.variants if name in self.buckets), default=None)

    def _takes(self, shape: RowShape) -> bool:
        denoisers = [self.buckets[name] for name in self.variants if name in self.buckets]
        lanes = self._lanes or shape.lanes
        if shape.lanes > lanes or not all(one.takes(shape.latent, shape.tokens, lanes) for one in denoisers):
            return False
        decoder = self.buckets.get(DECODER)
        if decoder is None:
            return True
        # What is larger than a tile is decoded in passes of other shapes.
        tile = TILE // decoder.signature.outputs[0].axes[-1].factor
        passes = [(chunk, *shape.latent[1:]) for chunk in shape.chunks] or [shape.latent]
        return max(shape.latent[-2:]) <= tile and all(decoder.takes(one) for one in passes)

    def _numerics(self) -> tuple[Numerics, Numerics]:
        """Strict and fast. An engine whose rows are their own needs no constant batch, one of fixed shapes has one."""
        on_torch, own, lanes = self.on_torch, self.maker.rows_are_their_own, self._lanes
        if not self.paths:
            return on_torch.strict, on_torch.fast
        decoders = {DECODER, *(["vae_tiny/decoder"] if on_torch.fast_decode is not None else [])}
        lone_decode, free = not own or bool(decoders - set(self.paths)), own and self.variants[0] in self.paths
        parts = {"torch": on_torch.fast.id, **{name: self.maker.numerics(path) for name, path in self.paths.items()}}
        padded, most = (0, MAX_LANES) if free else (on_torch.strict.padded_lanes, on_torch.strict.max_lanes)
        if lanes is not None:
            padded, most = lanes, lanes
        strict = Numerics(numerics_id({**parts, "invariance": f"fixed-{padded}"}), padded, most, lone_decode)
        if free and not lone_decode:
            return strict, strict
        fast_id, most = numerics_id({**parts, "invariance": "fast"}), MAX_LANES if lanes is None else lanes
        return strict, Numerics(fast_id, 0, most, lone_decode=DECODER in self.buckets)


def _call(network: LazyNetwork[Any], given: Tensor) -> Output:
    result: Output = network.get()(given)
    return result


def _evaluate(denoisers: Mapping[str, Denoiser], name: str, *inputs: Tensor) -> Tensor:
    return denoisers[name](*inputs)
