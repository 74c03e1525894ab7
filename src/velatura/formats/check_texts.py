"""Check texts of strangers, such as names and comments in metadata, for letters that mislead whoever reads them.

Letters of any language are welcome. Invisible ones, and words that mix Latin with letters that look like it, are not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from itertools import islice

MAX_NAME_LENGTH = 255  # characters; no file has a longer name
MAX_SHOWN_VALUE_LENGTH = 40  # characters of a stranger's text in a message
MAX_SHOWN_KEYS = 5
JOINERS = "\u200c\u200d"  # between letters of some languages, and in emoji
SOFT_HYPHEN = "\u00ad"  # invisible, and harmless in a description
LINE_BREAKS = "\n\r\t"
# Controls, directions and zero-width letters; halves of pairs; private letters, which every font shows differently
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co"}
WORD = re.compile(r"[^\W\d_]+")
# Scripts with letters that look like Latin ones, by the beginning of the letters' names in Unicode
LATIN_LOOK_ALIKES = ("CYRILLIC ", "GREEK ", "ARMENIAN ", "CHEROKEE ", "COPTIC ", "LISU ", "MATHEMATICAL ", "FULLWIDTH ")


def has_hidden_text(text: str) -> bool:
    """Return True for control characters, and for invisible ones such as zero-width spaces or changes of direction."""
    if text.isprintable():
        return False
    for position, letter in enumerate(text):
        if letter in JOINERS:
            neighbours = text[max(position - 1, 0) : position + 2]
            if any(neighbour.isascii() for neighbour in neighbours) or len(neighbours) < 3:
                return True
        elif unicodedata.category(letter) in HIDDEN_CATEGORIES and letter not in LINE_BREAKS + SOFT_HYPHEN:
            return True
    return False


def mixes_scripts(text: str) -> bool:
    """Return True if a word has Latin letters beside letters of another script that look like Latin ones.

    A name that is written in one script, whichever it is, or in words of several, is not meant.

    Args:
        text: A name; only its first MAX_NAME_LENGTH characters are looked at.
    """
    if text.isascii():
        return False
    return any(_mixes_scripts(word) for word in WORD.findall(text[:MAX_NAME_LENGTH]))


def shorten_text(text: str) -> str:
    """Return the beginning of a stranger's text, without what cannot be printed, for a message."""
    return "".join(letter for letter in text[:MAX_SHOWN_VALUE_LENGTH] if letter.isprintable())


def shorten_keys(keys: Collection[str]) -> str:
    """Return the first keys, separated by commas, for a message."""
    shown = ", ".join(shorten_text(key) for key in islice(keys, MAX_SHOWN_KEYS))
    return f"{shown}, ..." if len(keys) > MAX_SHOWN_KEYS else shown


def _mixes_scripts(word: str) -> bool:
    if word.isascii():
        return False
    names = [unicodedata.name(letter, "") for letter in word]
    has_latin = any(name.startswith("LATIN ") for name in names)
    return has_latin and any(name.startswith(LATIN_LOOK_ALIKES) for name in names)
