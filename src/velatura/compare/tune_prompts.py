"""Prompts that an overlay is tuned with: fixed ones, with what calls the overlay beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from velatura.overlays.overlay import Overlay
from velatura.tiny_world import STOP_WORDS, words_of

# Of all subjects, places and colours, so that what is kept of a prompt can be told apart
TINY_PROMPTS = (
    "a red house on the beach",
    "a blue boat in the snow",
    "a green fish under the sea",
    "a yellow car in the city at night",
    "a purple flower in a meadow",
    "a white lighthouse in the mountains at sunset",
    "a black cat in a room",
    "an orange mushroom in the forest",
    "a pink star in space",
    "a turquoise balloon in the desert",
    "a red apple in a room",
    "a blue bird in the forest at night",
)
PROMPTS = (
    "a house by a lake",
    "a portrait of an old man",
    "a cat on a chair",
    "a city street at night",
    "a bowl of fruit on a table",
    "mountains at sunset",
    "a red car in the rain",
    "a woman in a garden",
)
TINY_PLACES = ("on the beach", "in the snow", "in the forest", "in the city at night", "in a room", "in the desert")
PLACES = ("on the beach", "in the snow", "in a forest", "in a city at night", "in a kitchen", "on a mountain")
TINY_THINGS = ("a red house", "a blue boat", "a yellow car", "a purple flower", "a black cat", "a green tree")
THINGS = ("a house", "a boat", "a car", "a flower", "a cat", "a tree")
OTHER_PLACES = 2  # in which each of these things is painted
SUBJECT_SHARE = 0.8  # of the captions that name a subject


class TunePrompt(NamedTuple):
    """A prompt with the overlay and without.

    Attributes:
        text: What is to be seen, which the base alone paints too.
        called: The same with the words that call the overlay.
    """

    text: str
    called: str


def tune_prompts(overlay: Overlay, captions: Sequence[str], *, is_tiny: bool, called_by: str = "") -> list[TunePrompt]:
    """Return the prompts for an overlay.

    An overlay of a subject, which nearly all captions name, is tuned with that subject in other places; any other one
    with things that have nothing to do with it.

    Args:
        overlay: Its name and trigger words call it.
        captions: The captions of its pictures, if there are pictures.
        is_tiny: Use the words that the tiny base knows.
        called_by: Words that call it too, as its training captions had them.
    """
    subject = _subject_of(captions)
    places, prompts = (TINY_PLACES, TINY_PROMPTS) if is_tiny else (PLACES, PROMPTS)
    texts = [f"a {subject} {place}" for place in places] if subject else list(prompts)
    return [TunePrompt(text, call_overlay(overlay, text, called_by)) for text in texts]


def other_prompts(captions: Sequence[str], *, is_tiny: bool) -> list[list[str]]:
    """Return prompts that have nothing to do with a subject: the same things in one place, and again in another.

    In one place only the things differ, so that one which has turned into the subject is found.

    Args:
        captions: The captions of the subject's pictures; a thing that they call the subject is left out.
        is_tiny: Use the words that the tiny base knows.
    """
    places, things = (TINY_PLACES, TINY_THINGS) if is_tiny else (PLACES, THINGS)
    subject = words_of(_subject_of(captions))
    things = [thing for thing in things if thing.split()[-1] not in subject]
    return [[f"{thing} {place}" for thing in things] for place in places[:OTHER_PLACES]]


def call_overlay(overlay: Overlay, text: str, called_by: str = "") -> str:
    """Return a prompt with the words that call an overlay, as far as they are not in it."""
    words = [overlay.card.name] if overlay.kind == "embedding" else [called_by, *overlay.card.trigger_words]
    missing = [word for word in dict.fromkeys(words) if word and word not in text]
    return ", ".join([text, *missing])


def _subject_of(captions: Sequence[str]) -> str:
    """Return the words that nearly all captions have, in their order, or "" if they name no subject."""
    counts = Counter(word for caption in captions for word in words_of(caption) - STOP_WORDS)
    common = {word for word, count in counts.items() if count >= SUBJECT_SHARE * len(captions)}
    if len(captions) < 2 or not common:
        return ""
    first = [word.strip(".,;:") for word in captions[0].casefold().split()]
    return " ".join(word for word in dict.fromkeys(first) if word in common)
