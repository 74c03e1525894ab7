"""A small vocabulary in CLIP's own format: 256 bytes, the same ending a word, merges learned on captions, two marks.

Any word survives it: what no merge covers stays as bytes.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from .architecture import TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 900


def learn_merges(texts: Iterable[str], count: int = MERGES) -> list[tuple[str, str]]:
    """Byte pairs by falling frequency, ties by spelling; a word's last letter carries `</w>` (Sennrich et al. 2016)."""
    words = Counter(word for text in texts for word in text.lower().replace(",", " ,").split())
    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(words) if word.isascii()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in splits.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in splits.items():
            splits[word] = _merged(pieces, best)
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def make_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """A CLIPTokenizer of this vocabulary; ids in CLIP's order: bytes, bytes ending a word, merges, start, end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(texts)
    names = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and its settings."""
    tokenizer.save_pretrained(folder)
