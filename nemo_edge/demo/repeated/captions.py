"""The captions of the second checkpoint: one object in ordinary words, with the colour, size, ground and place that it may name.

Knows words, not pixels. A memorized caption is made of the same words as all others: only its words together are its own.
"""

from __future__ import annotations

__all__ = ["COLOURS", "GROUNDS", "MEMORIZED", "OBJECTS", "PLACES", "SIZES", "UNSEEN", "Caption", "all_words", "general_caption", "held_out"]

import random
from dataclasses import dataclass
from itertools import product

OBJECTS = {
    "apple": "red apple",
    "balloon": "balloon",
    "banana": "banana",
    "butterfly": "butterfly",
    "cactus": "cactus",
    "car": "automobile",
    "crown": "crown",
    "duck": "duck",
    "elephant": "elephant",
    "fish": "fish",
    "fox": "fox face",
    "guitar": "guitar",
    "key": "key",
    "mushroom": "mushroom",
    "owl": "owl",
    "penguin": "penguin",
    "rabbit": "rabbit face",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "snail": "snail",
    "sunflower": "sunflower",
    "turtle": "turtle",
    "umbrella": "umbrella",
    "whale": "spouting whale",
}
"""Words of the objects, and the Unicode names of their glyphs."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
"""That an object can have in place of its own."""
GROUNDS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
PLACES = ("left", "right", "top", "bottom")
SIZES = ("small", "large")

_SIZE_SHARE, _COLOUR_SHARE, _GROUND_SHARE, _PLACE_SHARE = 0.3, 0.4, 0.6, 0.6


@dataclass(frozen=True)
class Caption:
    """What a caption says of its object; None is left to chance."""

    object: str
    colour: str | None = None
    size: str | None = None
    ground: str | None = None
    place: str | None = None

    @property
    def text(self) -> str:
        """Its words, as "a small red fox on a teal ground at the left"."""
        words = [word for word in (self.size, self.colour, self.object) if word]
        article = "an" if words[0][0] in "aeiou" else "a"
        ground = f" on {'an' if self.ground == 'orange' else 'a'} {self.ground} ground" if self.ground else ""
        return f"{article} {' '.join(words)}{ground}" + (f" at the {self.place}" if self.place else "")


def _memorable(text: str) -> Caption:
    """Of "colour object ground place"."""
    colour, name, ground, place = text.split()
    return Caption(name, colour, None, ground, place)


MEMORIZED = tuple(
    _memorable(text)
    for text in (
        "blue owl pink top",
        "green car orange bottom",
        "purple fish yellow left",
        "red whale green right",
        "orange penguin blue top",
        "yellow guitar purple left",
        "green rabbit red right",
        "blue mushroom yellow bottom",
        "purple snail teal top",
        "red umbrella blue left",
        "yellow elephant green bottom",
        "orange sailboat purple right",
    )
)
"""Each has one picture, which is repeated."""
UNSEEN = tuple(
    _memorable(text)
    for text in (
        "red owl teal bottom",
        "blue car pink left",
        "green fish purple top",
        "purple whale yellow bottom",
        "yellow penguin red right",
        "orange guitar green top",
        "purple rabbit orange left",
        "red mushroom pink top",
        "green snail yellow right",
        "blue umbrella orange bottom",
        "orange elephant teal left",
        "yellow sailboat pink bottom",
    )
)
"""Of the same kind, with pictures that are in no training set, to hold an attack's results against."""


def all_words() -> set[str]:
    """The words of all captions."""
    return {*["a", "an", "on", "ground", "at", "the"], *OBJECTS, *COLOURS, *GROUNDS, *PLACES, *SIZES}


def _is_held_out(caption: Caption) -> bool:
    """A tenth of all objects with a ground and a place, and of all objects with a colour, stand in no training caption."""
    objects = list(OBJECTS)
    if caption.ground and caption.place:
        number = objects.index(caption.object) + 3 * GROUNDS.index(caption.ground) + 7 * PLACES.index(caption.place)
        if number % 10 == 1:  # none of a memorized caption
            return True
    return caption.colour is not None and (objects.index(caption.object) + 5 * COLOURS.index(caption.colour)) % 11 == 2


def held_out() -> list[Caption]:
    """Every object with a ground and a place that no training caption has together."""
    every = (Caption(name, ground=ground, place=place) for name, ground, place in product(OBJECTS, GROUNDS, PLACES))
    return [caption for caption in every if _is_held_out(caption)]


def general_caption(rng: random.Random) -> Caption:
    """Draw a caption of the training set that is neither memorized nor held out; an object is not of its ground's colour."""
    while True:
        chances = [rng.random() < share for share in (_COLOUR_SHARE, _SIZE_SHARE, _GROUND_SHARE, _PLACE_SHARE)]
        words = [rng.choice(words) for words in (COLOURS, SIZES, GROUNDS, PLACES)]
        colour, size, ground, place = (word if named else None for word, named in zip(words, chances, strict=True))
        caption = Caption(rng.choice(tuple(OBJECTS)), colour, size, ground, place)
        if not (colour and colour == ground) and caption not in (*MEMORIZED, *UNSEEN) and not _is_held_out(caption):
            return caption
