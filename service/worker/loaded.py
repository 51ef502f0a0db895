"""A model that is open: its networks, and the ways in which rows may run on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from models.families.image_to_video import ImageToVideoModel
from models.families.row import Row, network_of
from models.families.text_to_image import TextToImageModel
from service.worker.batch import Stage
from service.worker.lazy import LazyNetwork
from service.worker.numerics import Numerics

Role = Literal["conditioner", "encoder", "denoiser", "decoder", "fast decoder"]
CORE: tuple[Role, ...] = ("conditioner", "denoiser", "decoder")
"""What every row of a model runs on."""


@dataclass(frozen=True)
class RowShape:
    """What decides which engines of fixed shapes take a row."""

    latent: tuple[int, ...]
    """[(T,) C, h, w]."""
    tokens: int
    """Length of the context."""
    lanes: int
    """The most that one step runs on one network."""
    chunks: frozenset[int] = frozenset()
    """Of a clip: the numbers of frames that are decoded together."""

    @classmethod
    def of(cls, row: Row, chunks: frozenset[int] = frozenset()) -> RowShape:
        """That of an unfinished row."""
        lanes = (Counter(network_of(line, lane) for lane in line.lanes) for line in row.plan.lines)
        widest = max(count for counted in lanes for count in counted.values())
        return cls(tuple(row.state.shape[1:]), row.tokens, widest, chunks)


def takes_all(_shape: RowShape) -> bool:
    """That of networks which run every row."""
    return True


@dataclass(frozen=True)
class LoadedModel:
    """A model that is open, and the two ways its rows may run. Its networks come and go."""

    model: TextToImageModel | ImageToVideoModel
    strict: Numerics
    """A row's bytes are its own, whatever it is batched with."""
    fast: Numerics
    networks: Mapping[Role, LazyNetwork[Any]] = field(default_factory=dict)
    """What ``model`` runs on; one network may have two roles."""
    graphs: bool = False
    """Whether its steps are captured as CUDA graphs."""
    takes: Callable[[RowShape], bool] = takes_all
    """Whether these networks run such a row."""
    otherwise: tuple[LoadedModel, ...] = ()
    """The same model on other networks, for rows that these do not take; the last one takes all. Their conditioner and
    their encoder are these ones."""

    @property
    def ways(self) -> tuple[LoadedModel, ...]:
        """This one and the others, in the order in which a row looks for one that takes it."""
        return (self, *self.otherwise)

    def way(self, shape: RowShape) -> LoadedModel:
        """What runs a new row of this shape."""
        return next((way for way in self.ways if way.takes(shape)), self)

    def numerics(self, deterministic: bool) -> Numerics:
        """How a new row runs."""
        return self.strict if deterministic else self.fast

    def requirements(
        self, stage: Stage, from_picture: bool = False, fast_decoder: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Identities of the networks that a row needs in a stage, and of those it needs in later ones.

        Args:
            stage: the stage that comes next.
            from_picture: whether the row begins from a picture.
            fast_decoder: whether it is decoded by the small decoder, where the model has one.
        """
        decoder: Role = "fast decoder" if fast_decoder and "fast decoder" in self.networks else "decoder"
        first: tuple[Role, ...] = ("conditioner", "encoder") if from_picture else ("conditioner",)
        stages: list[tuple[Role, ...]] = [first, ("denoiser",), (decoder,)]
        number = (Stage.ENCODE, Stage.DENOISE, Stage.DECODE).index(stage)
        later = tuple(role for roles in stages[number + 1 :] for role in roles)
        return self._identities(stages[number]), self._identities(later)

    @property
    def all_networks(self) -> tuple[LazyNetwork[Any], ...]:
        """Those of all ways, each once."""
        return tuple({id(network): network for way in self.ways for network in way.networks.values()}.values())

    @property
    def core(self) -> frozenset[str]:
        """Identities of what every row runs on."""
        return frozenset(self._identities(CORE))

    def _identities(self, roles: Sequence[Role]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.networks[role].identity for role in roles if role in self.networks))
