"""Rebuild CLIP's vocabulary and byte-pair merges from the package instant_clip_tokenizer, without a network.

The package only encodes text as CLIP's token ids and decodes ids as text. That is enough: a token is the text of its
id, and the pair that it was merged from is what the earlier merges leave of its letters (Sennrich et al. 2016, "Neural
Machine Translation of Rare Words with Subword Units").
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

CLIP_VOCAB_SIZE = 49408  # of all public Stable Diffusions, also of SDXL
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"

# Bytes in the order of their ids. Bytes without a visible character come last, written as the letters from U+0100 on
VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = [*VISIBLE_BYTES, *(byte for byte in range(0x100) if byte not in VISIBLE_BYTES)]
BYTE_TO_UNICODE = {
    byte: chr(byte if index < len(VISIBLE_BYTES) else 0x100 + index - len(VISIBLE_BYTES))
    for index, byte in enumerate(BYTE_ORDER)
}

# A token may begin or end inside a UTF-8 character. These bytes complete it: they go before the token ...
LEADING_BYTES = (b"", b"\xc3", b"\xe1", b"\xf1")
TRAILING_BYTES = (
    b"",
    b"\x80",
    b"\xa0\x80",
    b"\x80\x80",
    b"\x90\x80\x80",
    b"\x80\x80\x80",
)  # ... and after it

REPLACEMENT_CHARACTER = "\ufffd"  # in the decoded text where a character is incomplete
DecodeTokens = Callable[[Sequence[int]], str]
MergePair = tuple[str, str]


class ClipVocabulary(NamedTuple):
    """Token ids by token, and the pairs that byte-pair encoding merges, in the order of their rank."""

    vocabulary: dict[str, int]
    merges: list[MergePair]


@lru_cache(maxsize=1)
def load_clip_vocabulary() -> ClipVocabulary:
    """Return CLIP's vocabulary and merges.

    Building them takes under a second. The result is cached and shared: do not change it.
    """
    package: Any = importlib.import_module("instant_clip_tokenizer")  # as Any: it has no types
    decode = cast("DecodeTokens", package.Tokenizer().decode)
    letters = [BYTE_TO_UNICODE[byte] for byte in BYTE_ORDER]
    words = [*letters, *(letter + END_OF_WORD for letter in letters)]
    merged_words = [_token_to_word(decode, token_id) for token_id in range(len(words), CLIP_VOCAB_SIZE - 2)]
    all_words = [*words, *merged_words, BOS_TOKEN, EOS_TOKEN]
    return ClipVocabulary(
        {word: token_id for token_id, word in enumerate(all_words)}, _find_merges(words, merged_words)
    )


def _token_to_word(decode: DecodeTokens, token_id: int) -> str:
    """Return a token as vocab.json writes it."""
    token_bytes = _token_to_bytes(decode, token_id)
    ending = END_OF_WORD if token_bytes.endswith(b" ") else ""
    return "".join(BYTE_TO_UNICODE[byte] for byte in token_bytes.removesuffix(b" ")) + ending


def _token_to_bytes(decode: DecodeTokens, token_id: int) -> bytes:
    """Return the bytes of a token: decode it between bytes that complete the characters at its ends."""
    for leading in LEADING_BYTES:
        for trailing in TRAILING_BYTES:
            text = decode([*map(BYTE_ORDER.index, leading), token_id, *map(BYTE_ORDER.index, trailing)])
            if REPLACEMENT_CHARACTER not in text:
                return text.encode()[len(leading) :].removesuffix(trailing)
    return decode([token_id]).encode()  # U+FFFD itself is a token as well


def _find_merges(base_words: Sequence[str], merged_words: Sequence[str]) -> list[MergePair]:
    """Return the pair that every merged word was made from, in the same order."""
    ranks: dict[MergePair, int] = {}
    known = set(base_words)
    for word in merged_words:
        ranks[_find_pair(word, known, ranks)] = len(ranks)
        known.add(word)
    return list(ranks)


def _find_pair(word: str, known: set[str], ranks: dict[MergePair, int]) -> MergePair:
    """Return the only split of a word into two known words, or else the last pair that the earlier merges leave."""
    stem = word.removesuffix(END_OF_WORD)
    splits = [(word[:cut], word[cut:]) for cut in range(1, len(stem)) if word[:cut] in known and word[cut:] in known]
    if len(splits) == 1:
        return splits[0]
    parts = [*stem[:-1], word[len(stem) - 1 :]]
    while len(parts) > 2:
        _, first = min((ranks.get(pair, len(ranks)), index) for index, pair in enumerate(pairwise(parts)))
        parts[first : first + 2] = ["".join(parts[first : first + 2])]
    return parts[0], parts[1]
