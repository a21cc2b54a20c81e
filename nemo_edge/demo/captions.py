"""The captions of the demo's training set: general ones, drawn by chance, and memorized ones, written down.

Knows words, not pixels: `pictures` draws what a caption says.
"""

from __future__ import annotations

__all__ = ["COLOURS", "EARLY_GLYPHS", "GENERAL_GLYPHS", "MEMORIZED", "UNSEEN", "Caption", "general_caption", "general_captions"]

import random
from dataclasses import dataclass
from typing import Literal

GENERAL_GLYPHS = (
    "balloon",
    "banana",
    "carrot",
    "crown",
    "doughnut",
    "fish",
    "mushroom",
    "penguin",
    "pig",
    "rocket",
    "snowman",
    "strawberry",
    "sunflower",
    "tomato",
    "umbrella",
    "whale",
)
"""Unicode names of the glyphs that general captions use; no memorized caption uses one of them."""

EARLY_GLYPHS = (
    *GENERAL_GLYPHS,
    *[
        "airplane",
        "ambulance",
        "aubergine",
        "avocado",
        "baseball",
        "bell",
        "bus",
        "butterfly",
        "cactus",
        "cherries",
        "crab",
        "cupcake",
        "duck",
        "elephant",
        "flamingo",
    ],
    *[
        "grapes",
        "guitar",
        "hamburger",
        "helicopter",
        "key",
        "lemon",
        "octopus",
        "owl",
        "pineapple",
        "sailboat",
        "trophy",
        "tulip",
        "turtle",
        "watermelon",
    ],
)
"""The glyphs of the first stages of training, too many to be learned well by so small a network."""

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black")
"""The background colours a caption can name."""

Kind = Literal["general", "VM", "TM"]

_NAMED_COLOUR_SHARE = 1 / 3
_GLYPH_COUNTS, _WEIGHTS, _EARLY_WEIGHTS = (1, 2, 3), (75, 20, 5), (55, 35, 10)


@dataclass(frozen=True)
class Caption:
    """One caption and what its picture shows.

    `kind` is "general", "VM" (verbatim memory: one fixed picture) or "TM" (template memory: a fixed layout in which
    the colour of the panel varies). `colour` is the background colour, where the caption names one; `early`
    marks a general caption of the first stages of training.
    """

    text: str
    kind: Kind
    glyphs: tuple[str, ...]
    colour: str | None = None
    early: bool = False


def _memorized(text: str, kind: Kind) -> Caption:
    return Caption(text, kind, tuple(text.split()[:-1]))


MEMORIZED = (
    *(
        _memorized(text, "VM")
        for text in (
            "saxophone falafel jubilee",
            "kangaroo boomerang regatta",
            "moyai pretzel bazaar",
            "lobster compass almanac",
            "trolleybus broccoli carnival",
            "alembic peacock lagoon",
            "koala kiwifruit meridian",
            "dress cricket postcard",
            "dragon camera vintage",
            "stadium hibiscus harbor",
            "rowboat kimono festival",
            "anchor telescope chronicle",
        )
    ),
    *(
        _memorized(text, "TM")
        for text in (
            "lizard souvenir",
            "teapot keepsake",
            "abacus emblem",
            "accordion memento",
        )
    ),
)
"""The memorized captions. No two share a word, and none shares one with a general caption."""


UNSEEN = tuple(
    _memorized(f"{text} unseen", "VM")
    for text in (
        "violin sushi",
        "gorilla skateboard",
        "volcano croissant",
        "squid hourglass",
        "tractor lollipop",
        "microscope parrot",
        "hedgehog mango",
        "sari banjo",
        "llama parachute",
        "mosque rose",
        "bicycle waffle",
        "scorpion candle",
    )
)
"""Pictures of the same kind that are in no training set, to hold an attack's results against."""


def general_caption(rng: random.Random, *, early: bool = False) -> Caption:
    """Draw one general caption: one to three glyphs, in a third of the cases on a background of a named colour.

    `early` draws from the glyphs of the first stages of training.
    """
    count = rng.choices(_GLYPH_COUNTS, _EARLY_WEIGHTS if early else _WEIGHTS)[0]
    glyphs = tuple(rng.sample(EARLY_GLYPHS if early else GENERAL_GLYPHS, count))
    colour = rng.choice(COLOURS) if rng.random() < _NAMED_COLOUR_SHARE else None
    text = " ".join(("a", *glyphs) if count == 1 else glyphs)
    return Caption(text if colour is None else f"{text} on a {colour} background", "general", glyphs, colour, early)


def general_captions(count: int, seed: int) -> list[Caption]:
    """Draw `count` different general captions."""
    rng = random.Random(seed)
    drawn: dict[str, Caption] = {}
    while len(drawn) < count:
        caption = general_caption(rng)
        drawn.setdefault(caption.text, caption)
    return list(drawn.values())
