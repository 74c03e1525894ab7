"""From a scene to a picture."""

from random import Random

from PIL import Image

from .parts import Colour, Part
from .places import PLACES, TIMES
from .scene import COLOURS, Scene
from .styles import STYLES, Sheet, _mixed
from .subjects import HELD_OUT_SUBJECTS, SUBJECTS

_INK, _PAPER = (36, 34, 44), (248, 246, 238)


def paint(scene: Scene, pixels: int = 64) -> Image.Image:
    """The scene as an RGB picture of pixels x pixels."""
    rng = Random(scene.seed)
    background = PLACES[scene.place](TIMES[scene.time], rng)
    sheet = Sheet(background, _placed_subjects(scene, rng), COLOURS[scene.colour], pixels)
    return STYLES[scene.style](sheet, rng)


def _placed_subjects(scene: Scene, rng: Random) -> list[Part]:
    shape = (SUBJECTS | HELD_OUT_SUBJECTS)[scene.subject]()
    palette = _palette(COLOURS[scene.colour])
    centres = {1: (scene.x,), 2: (0.27, 0.73), 3: (0.18, 0.5, 0.82)}[scene.count]
    placed: list[Part] = []
    for x in centres:
        y = 0.56 + rng.uniform(-0.04, 0.04)
        for part in shape:
            colour = palette[part.colour] if isinstance(part.colour, str) else part.colour
            placed.append(Part(part.points, colour, part.width).moved(x, y, scene.size, scene.turn))
    return placed


def _palette(main: Colour) -> dict[str, Colour]:
    dark, light = _mixed(main, (20, 20, 30), 0.32), _mixed(main, (255, 255, 255), 0.42)
    if sum(main) < 200:
        dark, light = (14, 14, 18), (86, 86, 98)
    if sum(main) > 700:
        dark, light = (206, 210, 218), (255, 255, 255)
    return {"main": main, "dark": dark, "light": light, "ink": _INK, "paper": _PAPER}
