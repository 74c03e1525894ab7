"""The twenty subjects of the tiny world and the two particular ones held out of the base's training.

Each is a list of parts in -1..1, painted back to front; `main` is the caption's colour.
"""

from collections.abc import Callable

from .parts import Part, arc, line, oval, poly, rect, star_points


def _house() -> list[Part]:
    return [
        rect("dark", 0.35, -0.85, 0.6, -0.3),
        rect("main", -0.75, -0.15, 0.75, 0.9),
        poly("dark", (-1, -0.1), (0, -0.95), (1, -0.1)),
        rect("ink", -0.18, 0.3, 0.18, 0.9),
        rect("paper", -0.6, 0.1, -0.3, 0.4),
        rect("paper", 0.3, 0.1, 0.6, 0.4),
    ]


def _tree() -> list[Part]:
    trunk = (110, 72, 44)
    return [
        rect(trunk, -0.15, 0.2, 0.15, 0.95),
        oval("main", -0.4, 0.0, 0.48, 0.45),
        oval("main", 0.4, 0.0, 0.48, 0.45),
        oval("main", 0, -0.45, 0.55, 0.5),
        oval("light", -0.15, -0.55, 0.2, 0.17),
        oval("dark", 0.4, 0.12, 0.2, 0.14),
    ]


def _boat() -> list[Part]:
    return [
        rect("ink", -0.06, -0.9, 0.04, 0.35),
        poly("paper", (0.08, -0.85), (0.75, 0.2), (0.08, 0.2)),
        poly("light", (-0.12, -0.6), (-0.12, 0.2), (-0.65, 0.2)),
        poly("main", (-0.95, 0.32), (0.95, 0.32), (0.6, 0.85), (-0.6, 0.85)),
        rect("dark", -0.88, 0.32, 0.88, 0.45),
    ]


def _fish() -> list[Part]:
    return [
        poly("dark", (0.45, 0), (1, -0.5), (0.88, 0), (1, 0.5)),
        poly("dark", (-0.25, -0.4), (0.1, -0.8), (0.35, -0.35)),
        oval("main", -0.15, 0, 0.75, 0.5),
        poly("light", (-0.1, 0.05), (0.3, -0.1), (0.3, 0.3)),
        oval("paper", -0.52, -0.12, 0.15, 0.15),
        oval("ink", -0.55, -0.12, 0.08, 0.08),
    ]


def _cat() -> list[Part]:
    return [
        arc("main", 0.2, 0.55, 0.45, 0.4, 0.4, -90, 90),
        oval("main", 0, 0.5, 0.52, 0.48),
        poly("main", (-0.55, -0.35), (-0.52, -0.98), (-0.1, -0.6)),
        poly("main", (0.55, -0.35), (0.52, -0.98), (0.1, -0.6)),
        oval("main", 0, -0.28, 0.56, 0.46),
        oval("light", 0, 0.55, 0.24, 0.3),
        oval("paper", -0.22, -0.32, 0.14, 0.14),
        oval("paper", 0.22, -0.32, 0.14, 0.14),
        oval("ink", -0.22, -0.32, 0.07, 0.1),
        oval("ink", 0.22, -0.32, 0.07, 0.1),
        poly("dark", (-0.1, -0.12), (0.1, -0.12), (0, 0)),
    ]


def _bird() -> list[Part]:
    beak = (240, 160, 40)
    return [
        poly("dark", (0.3, 0.15), (1, 0.15), (0.95, 0.55), (0.2, 0.5)),
        line(beak, 0.09, (-0.1, 0.5), (-0.1, 0.92)),
        line(beak, 0.09, (0.18, 0.5), (0.18, 0.92)),
        oval("main", 0, 0.15, 0.62, 0.48),
        oval("main", -0.45, -0.4, 0.38, 0.36),
        poly(beak, (-0.76, -0.52), (-0.76, -0.25), (-1.0, -0.36)),
        poly("dark", (-0.2, 0.02), (0.6, -0.55), (0.45, 0.3)),
        oval("paper", -0.52, -0.46, 0.13, 0.13),
        oval("ink", -0.54, -0.46, 0.07, 0.07),
    ]


def _flower() -> list[Part]:
    stem, leaf, heart = (52, 140, 60), (76, 170, 80), (250, 205, 70)
    petals = [oval("main", x, y - 0.4, 0.3, 0.3) for x, y in star_points(0, 0, 0.38, 0.38, 3)]
    return [
        line(stem, 0.12, (0, -0.2), (0, 0.95)),
        oval(leaf, 0.28, 0.55, 0.3, 0.12, turn=-30),
        oval(leaf, -0.28, 0.65, 0.3, 0.12, turn=30),
        *petals,
        oval(heart, 0, -0.4, 0.23, 0.23),
    ]


def _mug() -> list[Part]:
    return [
        arc("dark", 0.17, 0.45, 0.1, 0.4, 0.36, -90, 90),
        rect("main", -0.7, -0.5, 0.5, 0.7),
        oval("main", -0.1, 0.7, 0.6, 0.18),
        oval("light", -0.1, -0.5, 0.6, 0.2),
        oval("ink", -0.1, -0.48, 0.47, 0.13),
        line("paper", 0.08, (-0.3, -0.75), (-0.22, -0.98)),
        line("paper", 0.08, (0.1, -0.75), (0.18, -0.98)),
    ]


def _star() -> list[Part]:
    return [
        poly("dark", *star_points(0.04, 0.1, 1, 0.42, 5)),
        poly("main", *star_points(0, 0.02, 0.97, 0.4, 5)),
        poly("light", *star_points(0, 0.02, 0.48, 0.2, 5)),
    ]


def _car() -> list[Part]:
    return [
        poly("main", (-0.55, 0.05), (-0.35, -0.45), (0.35, -0.45), (0.62, 0.05)),
        poly("paper", (-0.4, 0.0), (-0.26, -0.34), (-0.04, -0.34), (-0.04, 0.0)),
        poly("paper", (0.06, 0.0), (0.06, -0.34), (0.28, -0.34), (0.44, 0.0)),
        poly("main", (-1, 0.05), (0.9, 0.0), (1, 0.2), (1, 0.5), (-1, 0.5)),
        rect("dark", -1, 0.36, 1, 0.5),
        oval("ink", -0.52, 0.52, 0.26, 0.26),
        oval("ink", 0.52, 0.52, 0.26, 0.26),
        oval("paper", -0.52, 0.52, 0.1, 0.1),
        oval("paper", 0.52, 0.52, 0.1, 0.1),
    ]


def _rocket() -> list[Part]:
    return [
        poly((255, 170, 50), (-0.2, 0.6), (0.2, 0.6), (0, 1)),
        poly("dark", (-0.28, 0.1), (-0.65, 0.75), (-0.2, 0.6)),
        poly("dark", (0.28, 0.1), (0.65, 0.75), (0.2, 0.6)),
        poly("main", (-0.32, 0.6), (-0.36, -0.2), (-0.2, -0.65), (0, -1), (0.2, -0.65), (0.36, -0.2), (0.32, 0.6)),
        poly("dark", (-0.2, -0.65), (0, -1), (0.2, -0.65)),
        oval("paper", 0, -0.22, 0.19, 0.19),
        oval((110, 190, 230), 0, -0.22, 0.12, 0.12),
    ]


def _mushroom() -> list[Part]:
    return [
        poly((238, 222, 190), (-0.26, -0.05), (0.26, -0.05), (0.36, 0.9), (-0.36, 0.9)),
        oval("main", 0, 0.05, 0.92, 0.9, 180, 360),
        rect("dark", -0.92, 0.0, 0.92, 0.1),
        oval("paper", -0.42, -0.28, 0.16, 0.14),
        oval("paper", 0.1, -0.55, 0.18, 0.15),
        oval("paper", 0.5, -0.2, 0.14, 0.12),
    ]


def _balloon() -> list[Part]:
    return [
        line("ink", 0.05, (-0.3, 0.25), (-0.16, 0.65)),
        line("ink", 0.05, (0.3, 0.25), (0.16, 0.65)),
        poly("main", (-0.55, 0.0), (0.55, 0.0), (0.18, 0.45), (-0.18, 0.45)),
        oval("main", 0, -0.3, 0.66, 0.64),
        oval("light", 0, -0.28, 0.24, 0.66),
        oval("dark", 0.5, -0.25, 0.12, 0.4),
        rect((150, 98, 56), -0.2, 0.62, 0.2, 0.95),
    ]


def _lighthouse() -> list[Part]:
    return [
        poly("main", (-0.24, -0.45), (0.24, -0.45), (0.42, 0.95), (-0.42, 0.95)),
        poly("paper", (-0.29, -0.12), (0.29, -0.12), (0.34, 0.2), (-0.34, 0.2)),
        poly("paper", (-0.37, 0.5), (0.37, 0.5), (0.41, 0.78), (-0.41, 0.78)),
        rect("ink", -0.34, -0.52, 0.34, -0.42),
        rect((255, 228, 110), -0.2, -0.78, 0.2, -0.52),
        poly("dark", (-0.3, -0.76), (0, -1), (0.3, -0.76)),
        poly((255, 238, 160), (0.22, -0.68), (0.95, -0.85), (0.95, -0.5)),
    ]


def _umbrella() -> list[Part]:
    return [
        line("ink", 0.09, (0, -0.2), (0, 0.75)),
        arc("ink", 0.09, -0.16, 0.75, 0.16, 0.18, 0, 180),
        oval("main", 0, 0.05, 0.96, 0.85, 180, 360),
        oval("dark", 0, 0.05, 0.34, 0.85, 180, 360),
        oval("light", 0, 0.05, 0.1, 0.85, 180, 360),
        line("ink", 0.09, (0, -0.95), (0, -0.78)),
    ]


def _apple() -> list[Part]:
    return [
        line((100, 66, 40), 0.12, (0, -0.4), (0.1, -0.9)),
        oval((80, 170, 70), 0.36, -0.72, 0.28, 0.14, turn=-20),
        oval("main", -0.27, 0.12, 0.55, 0.66),
        oval("main", 0.27, 0.12, 0.55, 0.66),
        oval("dark", 0.5, 0.3, 0.22, 0.38),
        oval("light", -0.46, -0.12, 0.14, 0.22, turn=20),
    ]


def _butterfly() -> list[Part]:
    return [
        oval("main", -0.5, -0.35, 0.5, 0.46, turn=35),
        oval("main", 0.5, -0.35, 0.5, 0.46, turn=-35),
        oval("dark", -0.4, 0.42, 0.38, 0.4),
        oval("dark", 0.4, 0.42, 0.38, 0.4),
        oval("light", -0.55, -0.4, 0.22, 0.2),
        oval("light", 0.55, -0.4, 0.22, 0.2),
        oval("ink", 0, 0.1, 0.11, 0.6),
        line("ink", 0.06, (0, -0.45), (-0.25, -0.9)),
        line("ink", 0.06, (0, -0.45), (0.25, -0.9)),
    ]


def _crown() -> list[Part]:
    return [
        poly("main", (-0.8, 0.6), (-0.95, -0.5), (-0.45, 0.05), (0, -0.75), (0.45, 0.05), (0.95, -0.5), (0.8, 0.6)),
        rect("dark", -0.8, 0.4, 0.8, 0.7),
        oval("light", -0.93, -0.55, 0.13, 0.13),
        oval("light", 0, -0.8, 0.14, 0.14),
        oval("light", 0.93, -0.55, 0.13, 0.13),
        oval("paper", -0.4, 0.55, 0.1, 0.1),
        oval("paper", 0.0, 0.55, 0.1, 0.1),
        oval("paper", 0.4, 0.55, 0.1, 0.1),
    ]


def _bell() -> list[Part]:
    return [
        arc("dark", 0.12, 0, -0.8, 0.14, 0.14, 0, 360),
        oval("dark", 0, 0.72, 0.2, 0.2),
        poly("main", (-0.75, 0.65), (-0.48, 0.25), (-0.42, -0.3), (0.42, -0.3), (0.48, 0.25), (0.75, 0.65)),
        oval("main", 0, -0.3, 0.42, 0.4),
        rect("dark", -0.8, 0.55, 0.8, 0.7),
        poly("light", (-0.3, 0.35), (-0.26, -0.3), (-0.1, -0.4), (-0.14, 0.35)),
    ]


def _key() -> list[Part]:
    return [
        rect("main", -0.2, -0.11, 0.95, 0.11),
        rect("main", 0.72, 0.05, 0.92, 0.5),
        rect("main", 0.38, 0.05, 0.56, 0.4),
        arc("main", 0.27, -0.5, 0, 0.34, 0.36, 0, 360),
        arc("light", 0.07, -0.5, 0, 0.36, 0.38, 150, 280),
    ]


def _robot() -> list[Part]:
    steel, eye = (168, 182, 196), (255, 214, 64)
    return [
        line("ink", 0.07, (0, -0.6), (0, -0.9)),
        oval((230, 60, 60), 0, -0.9, 0.11, 0.11),
        rect(steel, -0.85, 0.0, -0.55, 0.5),
        rect(steel, 0.55, 0.0, 0.85, 0.5),
        rect("ink", -0.38, 0.6, -0.1, 0.98),
        rect("ink", 0.1, 0.6, 0.38, 0.98),
        rect("main", -0.52, -0.05, 0.52, 0.68),
        rect(steel, -0.46, -0.64, 0.46, -0.08),
        oval(eye, -0.2, -0.38, 0.15, 0.15),
        oval(eye, 0.2, -0.38, 0.15, 0.15),
        oval("ink", -0.2, -0.38, 0.06, 0.06),
        oval("ink", 0.2, -0.38, 0.06, 0.06),
        rect("paper", -0.28, 0.12, 0.28, 0.42),
        oval((230, 60, 60), 0, 0.27, 0.1, 0.1),
    ]


def _dragon() -> list[Part]:
    return [
        poly("dark", (-0.05, 0.0), (0.3, -0.95), (0.55, -0.45), (0.95, -0.55), (0.4, 0.2)),
        line("main", 0.2, (0.4, 0.6), (0.8, 0.75), (0.95, 0.35)),
        oval("main", 0.1, 0.45, 0.52, 0.48),
        line("main", 0.3, (-0.15, 0.3), (-0.4, -0.3)),
        oval("main", -0.5, -0.48, 0.36, 0.26),
        poly("ink", (-0.4, -0.68), (-0.2, -0.98), (-0.18, -0.6)),
        oval((250, 214, 110), 0.0, 0.55, 0.27, 0.34),
        oval("paper", -0.52, -0.54, 0.12, 0.12),
        oval("ink", -0.54, -0.54, 0.06, 0.08),
        poly((255, 140, 40), (-0.84, -0.42), (-1.0, -0.2), (-0.7, -0.34)),
    ]


SUBJECTS: dict[str, Callable[[], list[Part]]] = {
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
    "cat": _cat,
    "bird": _bird,
    "flower": _flower,
    "mug": _mug,
    "star": _star,
    "car": _car,
    "rocket": _rocket,
    "mushroom": _mushroom,
    "balloon": _balloon,
    "lighthouse": _lighthouse,
    "umbrella": _umbrella,
    "apple": _apple,
    "butterfly": _butterfly,
    "crown": _crown,
    "bell": _bell,
    "key": _key,
}

# never drawn for the base: they are for overlays to learn
HELD_OUT_SUBJECTS: dict[str, Callable[[], list[Part]]] = {"robot": _robot, "dragon": _dragon}
