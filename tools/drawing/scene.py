"""A scene: what a picture shows, drawn at random, and the captions people would give it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from random import Random

from .places import PLACES, TIMELESS, TIMES
from .subjects import HELD_OUT_SUBJECTS, SUBJECTS

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 128, 28),
    "yellow": (248, 214, 40),
    "green": (44, 160, 66),
    "turquoise": (30, 200, 190),
    "blue": (40, 84, 214),
    "purple": (130, 52, 172),
    "pink": (246, 120, 180),
    "white": (246, 246, 242),
    "black": (34, 34, 40),
}

BASE_STYLES = ("poster", "ink", "watercolor", "chalk")
HELD_OUT_STYLES = ("neon", "blueprint", "oil", "halftone", "mosaic")

_PLACE_PHRASES = {
    "beach": ("on the beach", "on a sandy beach"),
    "desert": ("in the desert",),
    "snow": ("in the snow",),
    "forest": ("in the forest", "in a dark forest"),
    "meadow": ("in a meadow", "in a flower meadow"),
    "mountains": ("in the mountains",),
    "city": ("in the city", "on a city street"),
    "sea": ("under the sea", "underwater"),
    "space": ("in space", "in outer space"),
    "room": ("in a room", "indoors"),
}
_TIME_PHRASES = {"day": ("", "", "by day", "at noon"), "dusk": ("at dusk", "at sunset"), "night": ("at night",)}
_STYLE_PHRASES = {
    "poster": ("", "", "flat poster"),
    "ink": ("ink outline", "comic ink"),
    "watercolor": ("watercolor", "watercolor painting"),
    "chalk": ("chalk drawing", "chalk"),
    "neon": ("neon",),
    "blueprint": ("blueprint",),
    "oil": ("oil painting",),
    "halftone": ("halftone print",),
    "mosaic": ("mosaic",),
}
_PLURALS = {"fish": "fish", "butterfly": "butterflies"}
_NUMBERS = {1: ("a", "one"), 2: ("two",), 3: ("three",)}


@dataclass(frozen=True)
class Scene:
    """All that a picture shows; `seed` fixes what the words leave open."""

    subject: str
    colour: str
    place: str
    time: str
    style: str
    count: int = 1
    size: float = 0.31  # half the subject's height, in picture heights
    x: float = 0.5
    turn: float = 0.0
    seed: int = 0


def is_held_out(subject: str, colour: str, place: str) -> bool:
    """Whether this combination is kept from training: one in ten, spread evenly over subjects, colours, places."""
    i, j, k = list(SUBJECTS).index(subject), list(COLOURS).index(colour), list(PLACES).index(place)
    return (i + 3 * j + 7 * k) % 10 == 0


def random_scene(
    rng: Random,
    *,
    held_out: bool | None = False,
    styles: Sequence[str] = BASE_STYLES,
    subjects: Collection[str] | None = None,
) -> Scene:
    """One scene; `held_out` asks for combinations kept from training (True), the others (False) or any (None)."""
    names = list(subjects or SUBJECTS)
    while True:
        subject, colour, place = rng.choice(names), rng.choice(list(COLOURS)), rng.choice(list(PLACES))
        if held_out is None or subject in HELD_OUT_SUBJECTS or is_held_out(subject, colour, place) == held_out:
            break
    count = rng.choices((1, 2, 3), (84, 11, 5))[0]
    size = {1: rng.uniform(0.24, 0.38), 2: rng.uniform(0.19, 0.23), 3: rng.uniform(0.145, 0.165)}[count]
    room_for = max(0.0, 0.5 - size - 0.02)
    return Scene(
        subject=subject,
        colour=colour,
        place=place,
        time="day" if place in TIMELESS else rng.choice(list(TIMES)),
        style=rng.choice(list(styles)),
        count=count,
        size=size,
        x=0.5 + (rng.uniform(-room_for, room_for) if count == 1 else 0.0),
        turn=rng.uniform(-0.1, 0.1),
        seed=rng.getrandbits(32),
    )


def caption(scene: Scene, rng: Random, style_word: str | None = None) -> str:
    """One of many ways to say what the scene shows; `style_word` replaces the style's own words ("" omits them)."""
    style = rng.choice(_STYLE_PHRASES[scene.style]) if style_word is None else style_word
    things = f"{scene.colour} {_plural(scene.subject) if scene.count > 1 else scene.subject}"
    number = rng.choice(_NUMBERS[scene.count]) if scene.count > 1 or rng.random() < 0.1 else "a"
    what = f"{number} {_size_word(scene, rng)}{things}{_side(scene, rng)}"
    where = rng.choice(_PLACE_PHRASES[scene.place])
    when = "" if scene.place in TIMELESS else rng.choice(_TIME_PHRASES[scene.time])
    return _sentence(what, where, when, style, rng)


def _sentence(what: str, where: str, when: str, style: str, rng: Random) -> str:
    what = what.replace("a orange", "an orange")
    setting = f"{where} {when}".strip()
    form = rng.random()
    if form < 0.55:
        body = f"{what} {setting}"
    elif form < 0.7:
        body = f"{setting}, {what}"
    elif form < 0.85:
        body = ", ".join(filter(None, (what.removeprefix("a ").removeprefix("an "), where, when)))
    else:
        body = f"a picture of {what} {setting}"
    if not style:
        return body
    if form > 0.55 or rng.random() < 0.4:
        return f"{body}, {style}"
    return f"{'an' if style[0] in 'aeiou' else 'a'} {style} of {body}"


def _size_word(scene: Scene, rng: Random) -> str:
    if scene.count > 1 or rng.random() < 0.4:
        return ""
    if scene.size < 0.27:
        return "small "
    return rng.choice(("big ", "large ")) if scene.size > 0.35 else ""


def _side(scene: Scene, rng: Random) -> str:
    if abs(scene.x - 0.5) < 0.1 or rng.random() < 0.5:
        return ""
    return " on the left" if scene.x < 0.5 else " on the right"


def _plural(word: str) -> str:
    return _PLURALS.get(word, word + "s")


def in_style(scene: Scene, style: str) -> Scene:
    """The same scene in another style."""
    return replace(scene, style=style)
