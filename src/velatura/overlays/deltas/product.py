"""Base class of LoRA, LoHa and LoKr: a product of small matrices, also with DoRA's magnitudes (Liu et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, reshape_to_weight

EPSILON = torch.finfo(torch.float32).eps
DORA_SCALE = "dora_scale"


class ProductDelta(Delta):
    """Change that is a product of small matrices; with dora_scale (DoRA), the changed weight has given magnitudes."""

    @property
    def needs_weight(self) -> bool:
        """Return True if there are magnitudes, which depend on the weight."""
        return self.tensor(DORA_SCALE) is not None

    def product(self) -> Tensor:
        """Return the product of the matrices, flat or in the weight's shape, at strength 1 and without magnitudes."""
        raise NotImplementedError

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32.

        With DoRA the changed weight is g V / |V|, where V is the weight plus the product and g are the magnitudes. A
        strength interpolates linearly between the weight and that.
        """
        product = reshape_to_weight(self.product(), weight)
        if self.tensor(DORA_SCALE) is None:
            # on meta tensors only shapes count, and torch would import its compiler to scale them, which takes seconds
            return product if product.is_meta else product * strength
        base = weight.float()
        changed = base + product
        return (changed * self.mag_norm_scale(changed) - base) * strength

    def mag_norm_scale(self, changed: Tensor) -> Tensor:
        """Return g / |V|: the factors that bring the rows, or the columns, of a changed weight to their magnitudes.

        In training |V| is a constant without gradients, as in section 4.3 of the paper.
        """
        magnitude = self.required_tensor(DORA_SCALE)
        is_of_columns = magnitude.shape[0] != changed.shape[0] and magnitude.numel() == changed.shape[1]
        norm = weight_norm(changed.detach(), rows=not is_of_columns)
        if magnitude.numel() != norm.numel():
            raise ValueError(f"{DORA_SCALE} {tuple(magnitude.shape)} against {tuple(changed.shape)}")
        return magnitude.view(norm.shape) / norm


def weight_norm(weight: Tensor, *, rows: bool) -> Tensor:
    """Return the norms of a weight's rows or columns, plus epsilon, in a shape that broadcasts against the weight."""
    others = [dimension for dimension in range(weight.ndim) if dimension != (0 if rows else 1)]
    return weight.float().square().sum(others, keepdim=True).sqrt() + EPSILON
