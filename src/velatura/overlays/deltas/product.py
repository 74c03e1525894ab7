"""What LoRA, LoHa and LoKr share: a product of small matrices, and what DoRA makes of it (Liu et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, shaped

EPSILON = torch.finfo(torch.float32).eps
MAGNITUDE = "dora_scale"


class Product(Delta):
    """A change that is a product of small matrices; with dora_scale, the changed weight has magnitudes of its own."""

    def product(self) -> Tensor:
        """What the matrices make, flat or not, at strength 1 and without magnitudes."""
        raise NotImplementedError

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32.

        A decomposed weight is V g / |V|, V being the weight with the product on it; strengths lie on the line there.
        """
        added = shaped(self.product(), weight)
        if self.tensor(MAGNITUDE) is None:
            return added * strength
        base = weight.float()
        changed = base + added
        return (changed * self.factor(changed) - base) * strength

    def factor(self, changed: Tensor) -> Tensor:
        """By what each row, or each column, of a changed weight is multiplied to have the magnitude it should.

        Its own magnitude counts as a constant while training, as in the paper's section 4.3.
        """
        wanted, ones = self.of(MAGNITUDE), [1] * (changed.ndim - 2)
        if wanted.shape[0] == changed.shape[0]:
            norm = changed.detach().flatten(1).norm(dim=1).view(-1, 1, *ones)
        else:
            norm = changed.detach().transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *ones)
        if wanted.numel() != norm.numel():
            raise ValueError(f"{MAGNITUDE} {tuple(wanted.shape)} against {tuple(changed.shape)}")
        return wanted.view(norm.shape) / (norm + EPSILON)
