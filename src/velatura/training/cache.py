"""What of a folder of pictures does not change while an overlay trains: computed once, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.datasets.boxes import Size
from velatura.datasets.folder import Example
from velatura.datasets.templates import Wording
from velatura.datasets.weights import loss_weights
from velatura.training.buckets import sorted_by_size
from velatura.training.chance import seed_of
from velatura.training.encodings import Encodings
from velatura.training.latents import Sampling, encode_pictures
from velatura.training.plan import Shape
from velatura.training.speech import Speech


@dataclass(frozen=True)
class Cache:
    """The pictures as latents (pictures, 4, height, width), and what is said of them.

    deviations: of the latents, in the same shape, where each step draws its own; None where they are the same at each.
    weights: (pictures, 1, height, width) of mean 1, how much each place counts; None where all count alike. classes:
    pictures of what the base is to keep as it is, learned from beside the others, see class_pictures.py. others: the
    pictures of other sizes; this one has those of the most common size.
    """

    latents: Tensor
    speech: Speech
    weights: Tensor | None = None
    classes: Cache | None = None
    deviations: Tensor | None = None
    others: tuple[Cache, ...] = ()

    @property
    def sizes(self) -> tuple[Cache, ...]:
        """The pictures of each size."""
        return self, *self.others

    @property
    def count(self) -> int:
        """How many pictures there are of all sizes."""
        return sum(len(each.latents) for each in self.sizes)

    def drawn(self, pictures: Tensor, seed: int, first: int) -> Tensor:
        """The latents of pictures (batch,) as they are learned from; first: how many were learned from before these."""
        chosen = pictures.to(self.latents.device)
        if self.deviations is None:
            return self.latents[chosen]
        chances = [torch.Generator().manual_seed(seed_of(seed, "latents", first + row)) for row in range(len(chosen))]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=chance) for chance in chances])
        return self.latents[chosen] + self.deviations[chosen] * noise.to(self.latents.device)

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
    sampling: Sampling = "mean",
    seed: int = 0,
    encodings: Encodings | None = None,
    shape: Shape = "square",
) -> Cache:
    """Encode every picture and caption: what the VAE says, and what the same words say in a prompt.

    masks: let masks and alpha channels say which places count. wording: what is made of the captions; says_anew:
    whether words come to say something else as the overlay learns. sampling: what of the VAE's distribution is learned,
    see encode_pictures. encodings: where both are kept between runs. shape: one size, or the nearest of several.
    """
    kept = encodings or Encodings()

    def encoded(size: Size, some: Sequence[Example]) -> Cache:
        found = encode_pictures(base, some, size, kept, sampling=sampling, seed=seed)
        weights = _weights(some, size, found.values) if masks else None
        speech = Speech(base.text, [each.caption for each in some], wording, is_learned=says_anew, encodings=kept)
        return Cache(found.values, speech, weights, deviations=found.deviations)

    first, *others = (encoded(size, some) for size, some in sorted_by_size(examples, pixels, shape).items())
    kept.trim()
    return replace(first, others=tuple(others))


def _weights(examples: Sequence[Example], size: Size, latents: Tensor) -> Tensor | None:
    height, width = latents.shape[-2:]
    each_once = {example.path: loss_weights(example, size, (width, height)) for example in dict.fromkeys(examples)}
    found = [each_once[example.path] for example in examples]
    if all(each is None for each in found):
        return None
    alike = torch.ones(latents.shape[-2:])
    return torch.stack([alike if each is None else each for each in found]).unsqueeze(1).to(latents.device)
