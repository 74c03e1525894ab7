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

CLIP_VOCAB_SIZE = 49408  # of every public Stable Diffusion, SDXL among them
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"

# Bytes in the order of their ids; those that cannot be seen come last, written as the letters from U+0100 on
VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = [*VISIBLE_BYTES, *(byte for byte in range(0x100) if byte not in VISIBLE_BYTES)]
BYTE_TO_UNICODE = {
    byte: chr(byte if index < len(VISIBLE_BYTES) else 0x100 + index - len(VISIBLE_BYTES))
    for index, byte in enumerate(BYTE_ORDER)
}

# What makes whole letters of those that a word begins or ends within: leading bytes of two, three and four, ...
LEADING_BYTES = (b"", b"\xc3", b"\xe1", b"\xf1")
TRAILING_BYTES = (
    b"",
    b"\x80",
    b"\xa0\x80",
    b"\x80\x80",
    b"\x90\x80\x80",
    b"\x80\x80\x80",
)  # ... and the bytes that follow them

REPLACEMENT_CHARACTER = "\ufffd"  # what the package makes of half a letter
DecodeTokens = Callable[[Sequence[int]], str]
MergePair = tuple[str, str]


class ClipVocabulary(NamedTuple):
    """The words by their ids, and the pairs to be merged, the most urgent first."""

    vocabulary: dict[str, int]
    merges: list[MergePair]


@lru_cache(maxsize=1)
def load_clip_vocabulary() -> ClipVocabulary:
    """CLIP's own, in under a second; built once, so not to be changed."""
    package: Any = importlib.import_module("instant_clip_tokenizer")  # it says nothing of its types
    decode = cast("DecodeTokens", package.Tokenizer().decode)
    letters = [BYTE_TO_UNICODE[byte] for byte in BYTE_ORDER]
    words = [*letters, *(letter + END_OF_WORD for letter in letters)]
    merged_words = [_token_to_word(decode, token_id) for token_id in range(len(words), CLIP_VOCAB_SIZE - 2)]
    all_words = [*words, *merged_words, BOS_TOKEN, EOS_TOKEN]
    return ClipVocabulary(
        {word: token_id for token_id, word in enumerate(all_words)}, _find_merges(words, merged_words)
    )


def _token_to_word(decode: DecodeTokens, token_id: int) -> str:
    """What a token stands for, as vocabularies write it."""
    token_bytes = _token_to_bytes(decode, token_id)
    ending = END_OF_WORD if token_bytes.endswith(b" ") else ""
    return "".join(BYTE_TO_UNICODE[byte] for byte in token_bytes.removesuffix(b" ")) + ending


def _token_to_bytes(decode: DecodeTokens, token_id: int) -> bytes:
    """The bytes of a token, seen between others that complete the letters it begins and ends within."""
    for leading in LEADING_BYTES:
        for trailing in TRAILING_BYTES:
            text = decode([*map(BYTE_ORDER.index, leading), token_id, *map(BYTE_ORDER.index, trailing)])
            if REPLACEMENT_CHARACTER not in text:
                return text.encode()[len(leading) :].removesuffix(trailing)
    return decode([token_id]).encode()  # the sign for an unknown letter is a word as well


def _find_merges(base_words: Sequence[str], merged_words: Sequence[str]) -> list[MergePair]:
    """The pair that each word was merged from, in the same order."""
    ranks: dict[MergePair, int] = {}
    known = set(base_words)
    for word in merged_words:
        ranks[_find_pair(word, known, ranks)] = len(ranks)
        known.add(word)
    return list(ranks)


def _find_pair(word: str, known: set[str], ranks: dict[MergePair, int]) -> MergePair:
    """The only way to make a word of two known ones, or else what the merges before leave of its letters."""
    stem = word.removesuffix(END_OF_WORD)
    splits = [(word[:cut], word[cut:]) for cut in range(1, len(stem)) if word[:cut] in known and word[cut:] in known]
    if len(splits) == 1:
        return splits[0]
    parts = [*stem[:-1], word[len(stem) - 1 :]]
    while len(parts) > 2:
        _, first = min((ranks.get(pair, len(ranks)), index) for index, pair in enumerate(pairwise(parts)))
        parts[first : first + 2] = ["".join(parts[first : first + 2])]
    return parts[0], parts[1]
