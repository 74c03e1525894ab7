"""CLIP's vocabulary and merges, built again from a package that carries them, without a network.

The package turns text into CLIP's ids and ids into text, and no more. That is enough: what an id stands for is its
text, and the pair that a word was merged from is what the merges before it leave of it (Sennrich et al. 2016, "Neural
Machine Translation of Rare Words with Subword Units", for how merges are found and used).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

COUNT = 49408  # of every public Stable Diffusion, SDXL among them
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"

# Bytes in the order of their ids; those that cannot be seen come last, written as the letters from U+0100 on
SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [*SEEN, *(byte for byte in range(0x100) if byte not in SEEN)]
LETTERS = {byte: chr(byte if place < len(SEEN) else 0x100 + place - len(SEEN)) for place, byte in enumerate(BYTES)}

# What makes whole letters of those that a word begins or ends within: leading bytes of two, three and four, ...
BEFORE = (b"", b"\xc3", b"\xe1", b"\xf1")
AFTER = (b"", b"\x80", b"\xa0\x80", b"\x80\x80", b"\x90\x80\x80", b"\x80\x80\x80")  # ... and the bytes that follow them

UNKNOWN = "\ufffd"  # what the package makes of half a letter
Decode = Callable[[Sequence[int]], str]
Pair = tuple[str, str]


class ClipWords(NamedTuple):
    """The words by their ids, and the pairs to be merged, the most urgent first."""

    vocabulary: dict[str, int]
    merges: list[Pair]


@lru_cache(maxsize=1)
def clip_words() -> ClipWords:
    """CLIP's own, in under a second; built once, so not to be changed."""
    package: Any = importlib.import_module("instant_clip_tokenizer")  # it says nothing of its types
    decode = cast("Decode", package.Tokenizer().decode)
    letters = [LETTERS[byte] for byte in BYTES]
    words = [*letters, *(each + END_OF_WORD for each in letters)]
    merged = [_word(decode, token) for token in range(len(words), COUNT - 2)]
    names = [*words, *merged, START, END]
    return ClipWords({name: token for token, name in enumerate(names)}, _merges(words, merged))


def _word(decode: Decode, token: int) -> str:
    """What a token stands for, as vocabularies write it."""
    found = _bytes(decode, token)
    ending = END_OF_WORD if found.endswith(b" ") else ""
    return "".join(LETTERS[byte] for byte in found.removesuffix(b" ")) + ending


def _bytes(decode: Decode, token: int) -> bytes:
    """The bytes of a token, seen between others that complete the letters it begins and ends within."""
    for before in BEFORE:
        for after in AFTER:
            text = decode([*map(BYTES.index, before), token, *map(BYTES.index, after)])
            if UNKNOWN not in text:
                return text.encode()[len(before) :].removesuffix(after)
    return decode([token]).encode()  # the sign for an unknown letter is a word as well


def _merges(single: Sequence[str], merged: Sequence[str]) -> list[Pair]:
    """The pair that each word was merged from, in the same order."""
    ranks: dict[Pair, int] = {}
    known = set(single)
    for word in merged:
        ranks[_pair(word, known, ranks)] = len(ranks)
        known.add(word)
    return list(ranks)


def _pair(word: str, known: set[str], ranks: dict[Pair, int]) -> Pair:
    """The only way to make a word of two known ones, or else what the merges before leave of its letters."""
    stem = word.removesuffix(END_OF_WORD)
    ways = [(word[:cut], word[cut:]) for cut in range(1, len(stem)) if word[:cut] in known and word[cut:] in known]
    if len(ways) == 1:
        return ways[0]
    parts = [*stem[:-1], word[len(stem) - 1 :]]
    while len(parts) > 2:
        _, first = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
        parts[first : first + 2] = ["".join(parts[first : first + 2])]
    return parts[0], parts[1]
