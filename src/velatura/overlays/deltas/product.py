"""What LoRA, LoHa and LoKr share: a product of small matrices, and what DoRA makes of it (Liu et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, reshape_to_weight

EPSILON = torch.finfo(torch.float32).eps
DORA_SCALE = "dora_scale"


class ProductDelta(Delta):
    """A change that is a product of small matrices; with dora_scale, the changed weight has magnitudes of its own."""

    @property
    def needs_weight(self) -> bool:
        """Only magnitudes are of the changed weight."""
        return self.tensor(DORA_SCALE) is not None

    def product(self) -> Tensor:
        """What the matrices make, flat or not, at strength 1 and without magnitudes."""
        raise NotImplementedError

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32.

        A decomposed weight is V g / |V|, V being the weight with the product on it; strengths lie on the line there.
        """
        product = reshape_to_weight(self.product(), weight)
        if self.tensor(DORA_SCALE) is None:
            return product * strength
        base = weight.float()
        changed = base + product
        return (changed * self.mag_norm_scale(changed) - base) * strength

    def mag_norm_scale(self, changed: Tensor) -> Tensor:
        """By what each row, or each column, of a changed weight is multiplied to have the magnitude it should.

        Its own magnitude counts as a constant while training, as in the paper's section 4.3.
        """
        magnitude = self.required_tensor(DORA_SCALE)
        norm = weight_norm(changed.detach(), rows=magnitude.shape[0] == changed.shape[0])
        if magnitude.numel() != norm.numel():
            raise ValueError(f"{DORA_SCALE} {tuple(magnitude.shape)} against {tuple(changed.shape)}")
        return magnitude.view(norm.shape) / norm


def weight_norm(weight: Tensor, *, rows: bool) -> Tensor:
    """How long each row of a weight is, or each column, a little more than that; in a shape that divides the weight."""
    others = [dimension for dimension in range(weight.ndim) if dimension != (0 if rows else 1)]
    return weight.float().square().sum(others, keepdim=True).sqrt() + EPSILON
