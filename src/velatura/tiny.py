"""Data that ships with the package: the tiny base, and small folders of training pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from velatura.arguments import check_arguments
from velatura.errors import UnknownName, warn
from velatura.imports import pause_garbage_collection

if TYPE_CHECKING:
    import torch

    from velatura.base.base import Base

DATA_FOLDER = Path(__file__).parent / "data"
TINY_HASH = "4e79e44e20"  # of the bundled UNet
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
MAX_WORDS_SHOWN = 8
TINY_WORLD = (
    "it knows 20 subjects (house, tree, cat, ...), 10 colours, 10 places, day, dusk and night, and 4 styles, see "
    "docs/tiny.md"
)


@check_arguments()
def tiny(dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> Base:
    """Open the tiny base: a complete Stable Diffusion for pictures of 64 pixels, ready in seconds on a laptop.

    Args:
        dtype: Precision of the weights. "auto" is float32 on a CPU, where the same seed then gives the same picture
            bit for bit.
        device: Device to compute on.
    """
    with pause_garbage_collection():
        from velatura.formats.open import open_base

    return open_base(DATA_FOLDER / "tiny", dtype=dtype, device=device)


@check_arguments()
def bundled_picture_sets() -> list[str]:
    """Return the names of the bundled sets of pictures, sorted."""
    return sorted(path.name for path in (DATA_FOLDER / "pictures").glob("*/"))


@check_arguments()
def tiny_pictures(name: str) -> Path:
    """Return the folder of a bundled set of pictures: a style or a subject that the tiny base does not know.

    Raises:
        UnknownName: No set has that name.
    """
    folders = {folder: DATA_FOLDER / "pictures" / folder for folder in bundled_picture_sets()}
    if name not in folders:
        raise UnknownName.with_suggestions("set of pictures", name, folders)
    return folders[name]


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
        shown = ", ".join(words[:MAX_WORDS_SHOWN]) + (", ..." if len(words) > MAX_WORDS_SHOWN else "")
        warn(f"the tiny base was not trained on the words {shown}: {result}; {TINY_WORLD}")
