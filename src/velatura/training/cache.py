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
from velatura.datasets.templates import Wording
from velatura.datasets.weights import loss_weights
from velatura.training.speech import Speech

PICTURES_AT_ONCE = 8


@dataclass(frozen=True)
class Cache:
    """The pictures as latents (pictures, 4, height, width), and what is said of them.

    weights: (pictures, 1, height, width) of mean 1, how much each place counts; None where all count alike. classes:
    pictures of what the base is to keep as it is, learned from beside the others, see class_pictures.py.
    """

    latents: Tensor
    speech: Speech
    weights: Tensor | None = None
    classes: Cache | None = None

    @property
    def said(self) -> Conditioning:
        """What the captions say, see Speech.fixed."""
        return self.speech.fixed()


@torch.no_grad()
def encode_examples(
    base: Base,
    examples: Sequence[Example],
    pixels: int,
    *,
    masks: bool = True,
    wording: Wording | None = None,
    says_anew: bool = False,
) -> Cache:
    """Encode every picture and caption: the mean of what the VAE says, and what the same words say in a prompt.

    masks: let masks and alpha channels say which places count. wording: what is made of the captions; says_anew:
    whether words come to say something else as the overlay learns.
    """
    latents = [
        base.encode(torch.stack([_pixels(example, pixels) for example in some]).to(base.device))
        for some in _portions(examples)
    ]
    encoded = torch.cat(latents)
    weights = _weights(examples, pixels, encoded) if masks else None
    speech = Speech(base.text, [each.caption for each in examples], wording, is_learned=says_anew)
    return Cache(encoded, speech, weights)


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
