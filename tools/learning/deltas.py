"""Changes of weights that the factorial tries and the package does not train: ranks by noise, and singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

import velatura
from velatura.overlays.deltas.delta import Delta, Layer, Operands, TensorShape, as_matrix, layer_forward
from velatura.overlays.deltas.low_rank import LowRankDelta, LowRankOperands

TIMESTEP_COUNT = 1000  # of the noise schedule


class MaskedOperands(NamedTuple):
    """Factors of a low-rank product, and 1 for each rank that acts at the timestep of a row, (rows, rank)."""

    down: Tensor
    up: Tensor
    mask: Tensor


class RanksByNoise(LowRankDelta):
    """LoRA of which half the ranks act in pure noise, and more in a straight line down to timestep 0.

    Soboleva et al. 2025, T-LoRA (arXiv 2507.05964), without its orthogonal start.
    """

    uses_timesteps: ClassVar[bool] = True

    def select_ranks(self, operands: Operands, timesteps: Tensor) -> Operands:
        """Return the operands with the ranks that act at timesteps (rows,), or () for all rows."""
        assert isinstance(operands, LowRankOperands)
        least = self.rank // 2
        share = 1 - timesteps.reshape(-1).float() / TIMESTEP_COUNT
        counts = (share * (self.rank - least)).floor() + least
        mask = torch.arange(self.rank, device=timesteps.device) < counts[:, None]
        return MaskedOperands(operands.down, operands.up, mask.to(operands.down))

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output by the ranks that act; without timesteps all do."""
        if not isinstance(operands, MaskedOperands):
            return super().output_delta(layer, inputs, base_output, strength, operands)
        down_output = layer_forward(layer, inputs, operands.down, None)
        if isinstance(layer, nn.Conv2d):
            down_output = down_output * operands.mask[:, :, None, None]
            return torch.conv2d(down_output, operands.up[..., None, None]) * strength
        mask = operands.mask.view(len(operands.mask), *[1] * (inputs.ndim - 2), self.rank)
        return (down_output * mask) @ operands.up.T * strength


class SingularValueShifts(Delta):
    """Shift of a weight's singular values, none of which falls below 0 (Han et al. 2023, SVDiff, arXiv 2303.11305)."""

    algorithm: ClassVar[str] = "singular"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"left", "values", "right", "shifts"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"left", "values", "right"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:
        """Build shifts of 0 for the singular values of a layer's weight."""
        weight = as_matrix(layer.weight.detach().float())
        svd = torch.linalg.svd(weight, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        left, values, right = cast("tuple[Tensor, Tensor, Tensor]", svd)
        return cls.from_tensors({"left": left, "values": values, "right": right, "shifts": torch.zeros_like(values)})

    @property
    def needs_weight(self) -> bool:
        """Return False: the singular vectors are kept."""
        return False

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of the weight as a matrix."""
        return self.shape_of("left")[0], self.shape_of("right")[1]

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight, times the strength."""
        values = self.required_tensor("values")
        change = (values + self.required_tensor("shifts")).clamp(min=0) - values
        matrix = (self.required_tensor("left") * change) @ self.required_tensor("right")
        return matrix.reshape(weight.shape) * strength

    def is_compatible(self, weight: Tensor) -> bool:
        """Return True if it can be added to a weight of this shape."""
        return tuple(as_matrix(weight).shape) == self.weight_shape


def lora_of(delta: type[Delta], **options: Any) -> Callable[[velatura.Base, int], velatura.Lora]:
    """Return what makes a LoRA whose layers are changed by this class, at the rank and targets of the options."""

    def make(base: velatura.Base, seed: int) -> velatura.Lora:
        lora = velatura.Lora.for_base(base, name="trial", seed=seed, **options)
        weights = {name: dict(change.state_dict()) for name, change in lora.layers.items()}
        if issubclass(delta, LowRankDelta):
            return velatura.Lora(lora.card, {name: delta.from_tensors(tensors) for name, tensors in weights.items()})
        layers = _layers_of(base)
        deltas = {name: delta.for_layer(layers[name], rank=0, alpha=0.0) for name in weights}
        return velatura.Lora(lora.card, deltas)

    return make


def _layers_of(base: velatura.Base) -> dict[str, Layer]:
    """Return a base's layers by kohya's names."""
    from velatura.overlays.lora.kohya_names import names_in_files
    from velatura.overlays.target import Target

    target = Target.from_model(base)
    return {kohya_name: cast("Layer", target.layer(name)) for kohya_name, name in names_in_files(target).items()}
