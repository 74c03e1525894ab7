"""Built-in calibration prompts, with many subjects, scenes and styles."""

from __future__ import annotations

SUBJECTS = (
    "a red fox",
    "a lighthouse",
    "a portrait of an old woman",
    "a city street",
    "a bowl of fruit",
    "a sailing ship",
    "a castle on a hill",
    "a girl with a blue hat",
    "a forest path",
    "a cat asleep",
    "a steam train",
    "a mountain lake",
    "a knight in armour",
    "a vase of flowers",
    "a robot",
    "a small house",
    "two people dancing",
    "a dragon",
    "a bridge over a river",
    "a horse",
    "a market",
    "a tree in a field",
    "a man reading",
    "an owl",
    "a spaceship",
)
STYLES = (
    "photograph, 35 mm",
    "oil painting",
    "watercolour",
    "pencil drawing",
    "anime",
    "low poly, 3d render",
    "pixel art",
    "woodcut",
    "concept art, highly detailed",
    "children's book illustration",
    "impressionist painting",
)
SCENES = (
    "at dusk",
    "in the snow",
    "by candlelight",
    "in bright sunlight",
    "under the stars",
    "in the rain",
    "in fog",
    "in autumn",
    "on a plain background",
    "seen from above",
    "close up",
    "in the distance",
    "with a red roof",
)

# The three lists have 25, 11 and 13 entries, which share no factor. Counting through all three at once therefore
# reaches each of their 3575 combinations before any repeats.
PROMPT_COUNT = len(SUBJECTS) * len(STYLES) * len(SCENES)


def built_in_prompts(count: int, first: int = 0) -> list[str]:
    """Return `count` prompts from number `first` on, the same ones in every call."""
    return [_prompt(index % PROMPT_COUNT) for index in range(first, first + count)]


def _prompt(index: int) -> str:
    subject, scene = SUBJECTS[index % len(SUBJECTS)], SCENES[index % len(SCENES)]
    return f"{subject} {scene}, {STYLES[index % len(STYLES)]}"
