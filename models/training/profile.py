"""How much is trained, and on what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from models.training.artwork import Drawings
from models.training.concepts import CAPTION_STYLES, CONCEPTS, Concept
from models.training.loop import Recipe

PEOPLE = "People & Body"
"""The group of drawings that no model is told of."""


@dataclass(frozen=True)
class Profile:
    """The recipes are those of hours on one core; a profile says how many times as many steps, how many times as large
    batches, and on which device. Networks and tensors are made there by torch's default device."""

    device: str = "cpu"
    steps: int = 1
    batch: int = 1
    everything: bool = False
    """Every concept but people, in every style; otherwise the chosen ones in three."""

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with this profile's number of steps."""
        return replace(recipe, steps=self.steps * recipe.steps)

    def concepts(self, drawings: Drawings) -> tuple[Concept, ...]:
        """What is drawn."""
        return every_concept(drawings) if self.everything else CONCEPTS

    def styles(self, drawings: Drawings) -> tuple[str, ...]:
        """The style words."""
        return drawings.styles if self.everything else CAPTION_STYLES

    def check(self) -> None:
        """Raises ValueError when torch does not see the device."""
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError("profile=full trains on a GPU, and torch sees none; profile=small trains on the CPU")


PROFILES = {
    "small": Profile(),
    "full": Profile("cuda", steps=4, batch=8, everything=True),
}
SMALL = PROFILES["small"]


def every_concept(drawings: Drawings) -> tuple[Concept, ...]:
    """The chosen concepts, then all others but people by their Unicode names in lower case."""
    chosen = {concept.slug for concept in CONCEPTS}
    table = zip(drawings.slugs, drawings.names, drawings.groups, strict=True)
    others = (Concept(slug, name.lower()) for slug, name, group in table if slug not in chosen and group != PEOPLE)
    return (*CONCEPTS, *others)
