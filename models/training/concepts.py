"""The things that the first shipped model can draw, and the captions that it learns for them.

Every concept is drawn in 3d, noto, twemoji and at least three other styles of `artwork`, and the styles agree about its
pose. Left out after looking at the drawings: people, symbols, whole families (clock faces, moons) and near doubles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAPTION_STYLES = ("3d", "noto", "twemoji")  # the styles that the shipped model draws
UNCOUNTABLE = {
    "fire",
    "corn",
    "sweetcorn",
    "maize",
    "popcorn",
    "bread",
    "cheese",
    "coffee",
    "pizza",
    "flame",
    "lightning",
}


@dataclass(frozen=True)
class Concept:
    """One thing: the slug of its Unicode name, its plain English name and up to three synonyms."""

    slug: str
    name: str
    synonyms: tuple[str, ...] = ()


CONCEPTS = (
    # faces, creatures, hearts
    Concept("grinning-face", "happy face", ("smiley", "smile")),
    Concept("smiling-face-with-heart-eyes", "heart eyes face", ("love face",)),
    Concept("smiling-face-with-sunglasses", "cool face", ("sunglasses face",)),
    Concept("loudly-crying-face", "crying face", ("sad face",)),
    Concept("skull", "skull"),
    Concept("ghost", "ghost", ("spook",)),
    Concept("alien", "alien", ("extraterrestrial",)),
    Concept("robot", "robot", ("android",)),
    Concept("red-heart", "red heart", ("heart", "love")),
    Concept("blue-heart", "blue heart"),
    Concept("green-heart", "green heart"),
    Concept("broken-heart", "broken heart", ("heartbreak",)),
    # animals
    Concept("monkey-face", "monkey", ("ape",)),
    Concept("dog-face", "dog", ("puppy",)),
    Concept("fox", "fox"),
    Concept("cat-face", "cat", ("kitty", "kitten")),
    Concept("lion", "lion"),
    Concept("tiger-face", "tiger"),
    Concept("horse-face", "horse", ("pony",)),
    Concept("unicorn", "unicorn"),
    Concept("cow-face", "cow", ("cattle",)),
    Concept("pig-face", "pig", ("piglet",)),
    Concept("elephant", "elephant"),
    Concept("mouse-face", "mouse"),
    Concept("rabbit-face", "rabbit", ("bunny", "hare")),
    Concept("bear", "bear"),
    Concept("panda", "panda"),
    Concept("baby-chick", "chick", ("baby chicken",)),
    Concept("penguin", "penguin"),
    Concept("owl", "owl"),
    Concept("frog", "frog", ("toad",)),
    Concept("turtle", "turtle", ("tortoise",)),
    Concept("snake", "snake", ("serpent",)),
    Concept("whale", "whale"),
    Concept("fish", "fish"),
    Concept("octopus", "octopus"),
    Concept("crab", "crab"),
    Concept("snail", "snail"),
    Concept("butterfly", "butterfly"),
    Concept("honeybee", "bee", ("honeybee",)),
    Concept("lady-beetle", "ladybug", ("ladybird", "beetle")),
    Concept("spider", "spider"),
    Concept("spider-web", "spider web", ("cobweb",)),
    # plants
    Concept("cherry-blossom", "cherry blossom", ("pink flower",)),
    Concept("rose", "rose", ("red flower",)),
    Concept("sunflower", "sunflower", ("yellow flower",)),
    Concept("tulip", "tulip"),
    Concept("deciduous-tree", "tree"),
    Concept("palm-tree", "palm tree", ("palm",)),
    Concept("cactus", "cactus"),
    Concept("four-leaf-clover", "four leaf clover", ("clover",)),
    Concept("maple-leaf", "maple leaf", ("leaf",)),
    Concept("mushroom", "mushroom", ("toadstool",)),
    # food and drink
    Concept("grapes", "grapes"),
    Concept("watermelon", "watermelon", ("melon",)),
    Concept("tangerine", "orange", ("tangerine", "mandarin")),
    Concept("lemon", "lemon"),
    Concept("banana", "banana"),
    Concept("pineapple", "pineapple"),
    Concept("red-apple", "red apple", ("apple",)),
    Concept("green-apple", "green apple"),
    Concept("pear", "pear"),
    Concept("peach", "peach"),
    Concept("cherries", "cherries", ("cherry",)),
    Concept("strawberry", "strawberry"),
    Concept("kiwi-fruit", "kiwi", ("kiwi fruit",)),
    Concept("avocado", "avocado"),
    Concept("eggplant", "eggplant", ("aubergine",)),
    Concept("carrot", "carrot"),
    Concept("ear-of-corn", "corn", ("maize", "sweetcorn")),
    Concept("hot-pepper", "chili pepper", ("red pepper", "chilli")),
    Concept("bread", "bread", ("toast", "loaf")),
    Concept("croissant", "croissant"),
    Concept("cheese-wedge", "cheese"),
    Concept("hamburger", "burger", ("hamburger", "cheeseburger")),
    Concept("french-fries", "french fries", ("fries", "chips")),
    Concept("pizza", "pizza", ("slice of pizza",)),
    Concept("hot-dog", "hot dog", ("hotdog",)),
    Concept("popcorn", "popcorn"),
    Concept("soft-ice-cream", "ice cream cone", ("ice cream", "icecream")),
    Concept("doughnut", "donut", ("doughnut",)),
    Concept("cookie", "cookie", ("biscuit",)),
    Concept("birthday-cake", "birthday cake", ("cake",)),
    Concept("lollipop", "lollipop"),
    Concept("hot-beverage", "cup of coffee", ("coffee", "cup of tea")),
    Concept("wine-glass", "glass of wine", ("wine", "wine glass")),
    Concept("beer-mug", "beer", ("mug of beer",)),
    # places and vehicles
    Concept("volcano", "volcano"),
    Concept("house", "house", ("home",)),
    Concept("castle", "castle"),
    Concept("ferris-wheel", "ferris wheel"),
    Concept("rainbow", "rainbow"),
    Concept("locomotive", "steam train", ("locomotive", "train")),
    Concept("fire-engine", "fire truck", ("fire engine",)),
    Concept("automobile", "car", ("automobile", "red car")),
    Concept("tractor", "tractor"),
    Concept("bicycle", "bicycle", ("bike",)),
    Concept("airplane", "airplane", ("plane", "aeroplane")),
    Concept("helicopter", "helicopter"),
    Concept("rocket", "rocket", ("spaceship",)),
    Concept("sailboat", "sailboat", ("boat", "yacht")),
    Concept("anchor", "anchor"),
    # sky and weather
    Concept("sun", "sun"),
    Concept("crescent-moon", "moon", ("crescent moon",)),
    Concept("star", "star", ("yellow star",)),
    Concept("cloud", "cloud"),
    Concept("high-voltage", "lightning bolt", ("lightning", "thunderbolt")),
    Concept("umbrella", "umbrella", ("parasol",)),
    Concept("snowflake", "snowflake"),
    Concept("snowman", "snowman"),
    Concept("fire", "fire", ("flame",)),
    Concept("droplet", "water drop", ("drop", "droplet")),
    # celebration and sport
    Concept("jack-o-lantern", "halloween pumpkin", ("pumpkin",)),
    Concept("christmas-tree", "christmas tree"),
    Concept("balloon", "red balloon", ("balloon",)),
    Concept("wrapped-gift", "gift", ("present",)),
    Concept("trophy", "trophy", ("golden cup",)),
    Concept("soccer-ball", "soccer ball", ("football",)),
    Concept("baseball", "baseball"),
    Concept("basketball", "basketball"),
    Concept("american-football", "american football"),
    Concept("video-game", "game controller", ("gamepad",)),
    Concept("artist-palette", "paint palette", ("palette",)),
    # things
    Concept("crown", "crown"),
    Concept("top-hat", "top hat", ("hat",)),
    Concept("ring", "ring", ("diamond ring",)),
    Concept("gem-stone", "diamond", ("gem", "jewel")),
    Concept("bell", "bell"),
    Concept("guitar", "guitar"),
    Concept("headphone", "headphones", ("headset",)),
    Concept("camera", "camera"),
    Concept("television", "television", ("tv",)),
    Concept("light-bulb", "light bulb", ("bulb", "lamp")),
    Concept("open-book", "open book", ("book",)),
    Concept("pencil", "pencil"),
    Concept("scissors", "scissors"),
    Concept("key", "key"),
    Concept("locked", "padlock", ("lock",)),
    Concept("hammer", "hammer"),
    Concept("bomb", "bomb"),
    Concept("jeans", "jeans", ("trousers",)),
    Concept("dress", "dress"),
)


def captions(concept: Concept, style: str) -> list[str]:
    """Every caption of a drawing, name first: plain, with an article, and as "a picture of"; the style comes last.

    captions(cat, "3d") begins "cat 3d", "a cat 3d", "a picture of a cat 3d", then the same for each synonym.
    """
    found = []
    for word in (concept.name, *concept.synonyms):
        noun = with_article(word)
        # An uncountable or plural word is its own noun phrase, and would be listed twice.
        found += [f"{phrase} {style}" for phrase in dict.fromkeys((word, noun, f"a picture of {noun}"))]
    return found


def random_caption(concept: Concept, style: str, generator: np.random.Generator) -> str:
    """One of `captions`, the same one for the same state of the generator: half of the time one of the name's."""
    every = captions(concept, style)
    named = captions(Concept(concept.slug, concept.name), style)
    chosen = named if generator.random() < 0.5 else every
    return chosen[int(generator.integers(len(chosen)))]


def with_article(noun: str) -> str:
    """The noun with "a" or "an"; plural and uncountable nouns stay alone."""
    plural = noun.endswith("s") and not noun.endswith(("ss", "us"))
    if noun in UNCOUNTABLE or plural:
        return noun
    return f"{'an' if noun[0] in 'aeiou' and noun != 'unicorn' else 'a'} {noun}"


def by_slug(slugs: list[str] | None = None) -> tuple[Concept, ...]:
    """The concepts with these slugs in that order; all of them without slugs. Raises ValueError on an unknown slug."""
    table = {concept.slug: concept for concept in CONCEPTS}
    unknown = [slug for slug in slugs or () if slug not in table]
    if unknown:
        raise ValueError(f"unknown concepts {unknown}")
    return CONCEPTS if slugs is None else tuple(table[slug] for slug in slugs)
