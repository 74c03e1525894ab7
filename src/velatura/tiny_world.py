"""What the tiny base knows: the words and pictures that it was trained on, and warnings of others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from velatura.errors import warn

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from velatura.formats.vision.clip_pair import ClipPair

Item = TypeVar("Item")

# All words of the captions that it was trained on, but for STOP_WORDS: see docs/tiny.md
TINY_VOCABULARY = """
house tree boat fish cat bird flower mug star car rocket mushroom balloon lighthouse umbrella apple butterfly
butterflies crown bell key red orange yellow green turquoise blue purple pink white black beach sandy desert snow
forest dark meadow mountains mountain city street sea underwater space outer room indoors day noon dusk sunset night
flat poster ink outline comic watercolor painting chalk drawing picture one two three small big large left right
"""
TINY_WORDS = frozenset(TINY_VOCABULARY.split())
# Words that show nothing, in prompts of any base; BREAK separates chunks
EMPTY_WORDS = """
a an and are as at behind below beside between break by for from has have her here his in inside into is it its
near no not of off on or other out outside over some that the their there these this those to under up very
which while with within without
"""
STOP_WORDS = frozenset(EMPTY_WORDS.split())
WORD_PATTERN = re.compile(r"[^\W\d_]+")
TINY_WORLD = (
    "it knows 20 subjects (house, tree, cat, ...), 10 colours, 10 places, day, dusk and night, and 4 styles, see "
    "docs/tiny.md"
)
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white", "black")
PLACES_WITHOUT_TIME = ("under the sea", "in space", "in a room")
PLACES = (
    "on the beach",
    "in the desert",
    "in the snow",
    "in the forest",
    "in a meadow",
    "in the mountains",
    "in the city",
    *PLACES_WITHOUT_TIME,
)
TIMES = ("by day", "at sunset", "at night")
SUBJECTS = (
    "house",
    "tree",
    "boat",
    "fish",
    "cat",
    "bird",
    "flower",
    "mug",
    "star",
    "car",
    "rocket",
    "mushroom",
    "balloon",
    "lighthouse",
    "umbrella",
    "apple",
    "butterfly",
    "crown",
    "bell",
    "key",
)
MAX_WORDS_SHOWN = 8
# Measured on drawings of the program that drew the tiny base's training pictures, and on 18 photographs of scikit-image
# and scikit-learn with 72 cuts of them: `similarity_to_tiny_world` is 0.72 on its own world, 0.78 to 0.82 on bundled
# blueprints and robots and on new styles (oil, mosaic, halftone), 0.65 on the bundled neon drawings, the farthest of
# what it learns well, 0.58 on the photographs, and 0.42 on noise. Single pictures vary by 0.06 (neon) to 0.09
# (photographs). The mean of 12 pictures is below the bound for 1 of 100 draws of neon drawings, and for 4 of 5 of
# photographs; a single photograph is below it in 1 of 4 cases.
FARTHEST_MEAN, FARTHEST_DEVIATION = 0.65, 0.13  # the bound for one picture is 0.52, for many 0.65
MAX_JUDGED_PICTURES = 32  # of a folder, evenly spaced


def words_of(text: str) -> set[str]:
    """Return the words of a text in lower case."""
    return set(WORD_PATTERN.findall(text.casefold()))


def words_unknown_to_tiny(texts: Iterable[str]) -> list[str]:
    """Return the words of prompts or captions that the tiny base was not trained on, in alphabetical order.

    Args:
        texts: The texts without tags. Plurals with s count as known.
    """
    words = {word for text in texts for word in words_of(text)}
    known = TINY_WORDS | STOP_WORDS
    return sorted(word for word in words if len(word) > 1 and word not in known and word.removesuffix("s") not in known)


def warn_of_words_unknown_to_tiny(words: Iterable[str], result: str) -> None:
    """Warn once of words that the tiny base was not trained on, if there are any.

    Args:
        words: The words.
        result: What they mean for the result.
    """
    words = list(words)
    if words:
        warn(describe_unknown_words(words, result))


def describe_unknown_words(words: Sequence[str], result: str) -> str:
    """Say that the tiny base was not trained on words, what that means for the result, and what it knows."""
    shown = ", ".join(words[:MAX_WORDS_SHOWN]) + (", ..." if len(words) > MAX_WORDS_SHOWN else "")
    return f"the tiny base was not trained on the words {shown}: {result}; {TINY_WORLD}"


def describe_limits_of_training(
    captions: Sequence[str], learned: Collection[str], pictures: Sequence[Image.Image]
) -> Iterator[str]:
    """Say which words of captions the tiny base does not know, and whether the pictures are far from what it knows.

    Args:
        captions: All captions of a training.
        learned: The words of the overlay, which it learns, as what stands in half of the captions.
        pictures: Pictures of the training, as `select_judged` chooses them.

    Yields:
        Up to two sentences.
    """
    counts = Counter(word for caption in captions for word in words_of(caption))
    rare = [word for word in words_unknown_to_tiny(captions) if 2 * counts[word] < len(captions)]
    words = [word for word in rare if word not in learned]
    if words:
        yield describe_unknown_words(words, "each stands in few captions, so the overlay hardly learns what it means")
    far = describe_far_pictures(pictures)
    if far is not None:
        result = "an overlay hardly learns them there; for photographs name another base"
        yield f"the pictures are {far}: {result}" + ("" if words else f"; {TINY_WORLD}")


def tiny_captions() -> list[str]:
    """Return captions of all that the tiny base was trained on: each subject in each colour, place and time of day."""
    return [
        f"{with_article(colour)} {subject} {place} {time}".strip()
        for colour, subject, place in product(COLOURS, SUBJECTS, PLACES)
        for time in (("",) if place in PLACES_WITHOUT_TIME else TIMES)
    ]


def with_article(word: str) -> str:
    """Return the word behind "a" or "an"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def similarity_to_tiny_world(pictures: Sequence[Image.Image]) -> float:
    """Return how similar pictures are to the captions of what the tiny base knows, by its own CLIP.

    Args:
        pictures: Pictures of any size, of which the middle square counts.

    Returns:
        Cosine of a picture's embedding and the nearest caption's, averaged over the pictures.
    """
    similarities = _tiny_clip().encode_images(pictures) @ _caption_embeddings().T
    return float(similarities.max(dim=1).values.mean())


def describe_far_pictures(pictures: Sequence[Image.Image]) -> str | None:
    """Say how far pictures are from what the tiny base knows, or return None if they are not far.

    Args:
        pictures: Pictures of one training, or an init image; of many, those of `select_judged` are enough.
    """
    if not pictures:
        return None
    similarity = similarity_to_tiny_world(pictures)
    if similarity >= FARTHEST_MEAN - FARTHEST_DEVIATION / sqrt(len(pictures)):
        return None
    return (
        f"far from what the tiny base was trained on (similarity {similarity:.2f} by its CLIP; the bundled drawings "
        "have 0.65 to 0.82)"
    )


def warn_of_far_image(image: Image.Image) -> None:
    """Warn of an init image that is far from what the tiny base knows."""
    description = describe_far_pictures([image])
    if description is not None:
        warn(f"the init image is {description}: what stays of it comes out changed; {TINY_WORLD}")


def select_judged(items: Sequence[Item]) -> list[Item]:
    """Return at most MAX_JUDGED_PICTURES of the pictures of a folder, evenly spaced."""
    step = max(1, -(-len(items) // MAX_JUDGED_PICTURES))
    return list(items[::step])


@cache
def _tiny_clip() -> ClipPair:
    from velatura.formats.vision.clip_pair import find_clip_pair
    from velatura.tiny import tiny

    clip = find_clip_pair(tiny("float32"))
    assert clip is not None  # it ships with the package
    return clip


@cache
def _caption_embeddings() -> Tensor:
    return _tiny_clip().encode_texts(tiny_captions())
