"""What of a folder of pictures does not change while an overlay trains: computed once, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.datasets.folder import Example
from velatura.datasets.pictures import read_picture
from velatura.datasets.weights import loss_weights
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, conditioning

PICTURES_AT_ONCE = 8


@dataclass(frozen=True)
class Cache:
    """The pictures as latents (pictures, 4, height, width), and what their captions say.

    said: a row for each picture, and a last one for no caption, which says what an empty negative prompt does.
    weights: (pictures, 1, height, width) of mean 1, how much each place counts; None where all count alike. classes:
    pictures of what the base is to keep as it is, learned from beside the others, see class_pictures.py.
    """

    latents: Tensor
    said: Conditioning
    weights: Tensor | None = None
    classes: Cache | None = None


@torch.no_grad()
def encode_examples(base: Base, examples: Sequence[Example], pixels: int, *, masks: bool = True) -> Cache:
    """Encode every picture and caption: the mean of what the VAE says, and what the same words say in a prompt.

    masks: let masks and alpha channels say which places count.
    """
    latents = [
        base.encode(torch.stack([_pixels(example, pixels) for example in some]).to(base.device))
        for some in _portions(examples)
    ]
    captions = [Prompt(example.caption, example.caption) for example in examples]
    chunk_count = max(len(chunks_of(base.text, caption)) for caption in captions)
    said = conditioning(base.text, captions, chunk_count)
    nothing = conditioning(base.text, [Prompt("", "")], chunk_count, negative=True)
    encoded = torch.cat(latents)
    weights = _weights(examples, pixels, encoded) if masks else None
    return Cache(encoded, Conditioning.joined([said, nothing]), weights)


def _weights(examples: Sequence[Example], pixels: int, latents: Tensor) -> Tensor | None:
    found = [loss_weights(example, pixels, latents.shape[-1]) for example in examples]
    if all(each is None for each in found):
        return None
    alike = torch.ones(latents.shape[-2:])
    return torch.stack([alike if each is None else each for each in found]).unsqueeze(1).to(latents.device)


def _portions(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[first : first + PICTURES_AT_ONCE] for first in range(0, len(examples), PICTURES_AT_ONCE)]


def _pixels(example: Example, pixels: int) -> Tensor:
    """The picture as the VAE wants it: (3, pixels, pixels), from -1 to 1."""
    picture = torch.tensor(np.asarray(read_picture(example.path, pixels), dtype=np.float32))  # (pixels, pixels, 3)
    return (picture / 127.5 - 1).permute(2, 0, 1)
