"""The tokenizer of the tiny base and the captions as token ids."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from .architecture import TOKENS
from .data import draw, training_scene, unseen_scene
from .store import drawing_key, file_key, kept
from .tokenizer import make_tokenizer

PICTURES = 48_000

# words that overlays, other styles and any user are likely to bring, so that they are not spelled letter by letter
EXTRA = """a robot in the forest, a dragon at night, neon style, blueprint style, oil painting, halftone print, mosaic,
in the style of, picture photo drawing sketch art artist cartoon pixel portrait landscape sunny dark bright light cloudy
morning evening with and of the by is at on under over near beside small little tiny huge big large red house"""


def tokenizer(work: Path) -> CLIPTokenizer:
    """The vocabulary learned from the training captions, kept in the work folder."""
    folder = work / "tokenizer"
    if not folder.exists():
        captions = [text for texts in draw(training_scene, PICTURES, 0, work).captions for text in texts]
        made = make_tokenizer([*captions[:20_000], *[EXTRA] * 3])
        made.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def padded_ids(words: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(texts, 77) ids, start and end marked, padded with the end mark."""
    return words(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def training_ids(work: Path) -> Tensor:
    """(pictures, 4, 77) ids of the training captions."""
    words = tokenizer(work)

    def make() -> NDArray[np.uint16]:
        captions = draw(training_scene, PICTURES, 0, work).captions
        return torch.stack([padded_ids(words, texts) for texts in captions]).numpy().astype(np.uint16)

    key = f"{drawing_key()}-{file_key(work / 'tokenizer' / 'tokenizer.json')}"
    return torch.from_numpy(kept(work, "caption-ids", key, make).astype(np.int64))


def unseen_ids(work: Path, count: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 64, 64, 3), ids of their first captions, and labels, of combinations never trained on."""
    drawings = draw(unseen_scene, count, 10_000_000, work)
    ids = padded_ids(tokenizer(work), [texts[0] for texts in drawings.captions])
    return torch.from_numpy(drawings.pictures), ids, torch.from_numpy(drawings.labels)
