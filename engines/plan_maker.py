"""TensorRT plans as the engines of one model: which shapes they are built for, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.buckets import Buckets, chosen
from engines.cache import EngineCache, kernels_of
from engines.call import Session, file_bytes
from engines.networks import Network, bucket, networks_of
from engines.plan import Flavour, PlanOptions, PlanReport, buckets_of
from engines.plan_session import PlanSession, plan_numerics
from engines.precision import Precision
from engines.prepare import build_network_plan, find_plan, plan_key
from engines.signature import Sizes
from engines.verdict import Sample
from models.spec.model import ModelSpec

if TYPE_CHECKING:
    from models.adapters.whole import AdapterSet

DECODER = "vae/decoder"


@dataclass(frozen=True)
class PlanMaker:
    """TensorRT of one flavour on one GPU, in the precision of the worker. Plans have fixed shapes: those of calls that
    occurred, or those of the model's native size where none did."""

    folder: Path
    """The model's."""
    cache: EngineCache
    name: Flavour
    precision: Precision
    lanes: tuple[int, ...]
    """Of the denoiser's buckets, one or two; the larger one is that of strict rows."""
    device: str = "cuda"
    architectures: tuple[str, ...] = ()
    """What tensorrt-rtx builds for."""
    refittable: bool = False
    """Whether the weights of its plans can be exchanged for those of sets of adapters."""
    adapters: AdapterSet | None = None
    rows_are_their_own: bool = False
    threads: int = 1

    def networks(self) -> Mapping[str, Network]:
        """The denoiser with its variants and the decoder, in which a row spends its time."""
        named = networks_of(self.folder, self.adapters).items()
        return {name: network for name, network in named if name == DECODER or not _beside(network)}

    def find(self, name: str) -> Path | None:
        """The plan of this GPU, whatever its buckets, that was used last. One that was built beforehand and cannot be
        refitted serves as well, where there is no other."""
        found = self._found(name)
        return replace(self, refittable=False)._found(name) if found is None and self.refittable else found

    def build(self, name: str, samples: Sequence[Sample]) -> Path:
        """The plan, built if the cache lacks it; errors as :func:`engines.prepare.build_network_plan`. That of a set of
        adapters is the base's with other weights, where there is such a plan, and for the same shapes."""
        network = self.networks()[name]
        if (base := self._base(network)) is not None:
            options = self._options(PlanReport.read(base.parent).buckets)
            return build_network_plan(network, self.cache, self.precision, options, samples, base)
        calls = [[tensor.shape for tensor in sample] for sample in samples]
        sizes = chosen(network.signature, calls, self._lanes(network)) if calls else self._native(network)
        return build_network_plan(network, self.cache, self.precision, self._options(sizes), samples)

    def _base(self, network: Network) -> Path | None:
        """The refittable plan without adapters. In 8 bits the scales are part of the plan, and those of the set's are
        its own."""
        if not (network.adapters and self.refittable) or network.eight is not None:
            return None
        return replace(self, adapters=None)._found(network.name)

    def discard(self, name: str, path: Path) -> None:
        """Take a plan out of the cache."""
        options = self._options(PlanReport.read(path.parent).buckets)
        self.cache.discard(plan_key(self.networks()[name], self.precision, options))

    def open(self, path: Path) -> Session:
        """Load it onto the current GPU; tensorrt-rtx keeps what it compiles beside the plan's entry in the cache."""
        return PlanSession(path, runtime_cache=kernels_of(path.parent))

    def numerics(self, path: Path) -> str:
        """What the bytes of its output depend on."""
        return plan_numerics(path)

    def weight_bytes(self, name: str, path: Path) -> int:  # noqa: ARG002 (every one is loaded as it is)
        """Those of the file."""
        return file_bytes(path)

    def buckets(self, path: Path) -> Buckets | None:
        """The shapes that it was built for."""
        return buckets_of(path)

    def _found(self, name: str) -> Path | None:
        network = self.networks()[name]
        return find_plan(network, self.cache, self.precision, self._options(self._native(network)))

    def _options(self, sizes: tuple[Sizes, ...]) -> PlanOptions:
        return PlanOptions(self.name, sizes, self.architectures, refittable=self.refittable)

    def _lanes(self, network: Network) -> tuple[int, ...]:
        # A picture or a chunk of frames fills the device alone, and its bytes are its own when it is decoded alone.
        return (1,) if network.name == DECODER else self.lanes

    def _native(self, network: Network) -> tuple[Sizes, ...]:
        spec = ModelSpec.read(self.folder)
        lanes = sorted(set(self._lanes(network)), reverse=True)
        return tuple(bucket(network, spec, count, *spec.sizes[0]) for count in lanes)


def _beside(network: Network) -> bool:
    """Whether it is not the denoiser."""
    return network.is_tower or network.name.startswith("vae")
