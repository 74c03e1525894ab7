"""Changes that are as large as what they change: of any weight and bias, of norms, and (IA)^3's of rows or columns."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, Layer, Ready, Shape, along, shaped, times


class Full(Delta):
    """A difference of a whole weight, and of its bias if it has one."""

    algorithm: ClassVar[str] = "full"
    needed: ClassVar[frozenset[str]] = frozenset({"diff"})
    optional: ClassVar[frozenset[str]] = frozenset({"diff_b"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Zeros for all of a layer."""
        tensors = {"diff": torch.zeros(layer.weight.shape)}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {"diff_b": torch.zeros(layer.bias.shape)}))

    @property
    def reads_weight(self) -> bool:
        """It is what it is."""
        return False

    @property
    def shape(self) -> Shape:
        """The shape of its weight."""
        return tuple(self.of("diff").shape)

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The difference, times the strength."""
        return times(shaped(self.of("diff"), weight), strength)

    def bias_change(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """That of the bias, times the strength."""
        found = self.tensor("diff_b")
        return None if found is None else times(found, strength)


class Norm(Delta):
    """Differences of the weight and the bias of a norm."""

    algorithm: ClassVar[str] = "norm"
    needed: ClassVar[frozenset[str]] = frozenset({"w_norm"})
    optional: ClassVar[frozenset[str]] = frozenset({"b_norm"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Zeros for a norm."""
        tensors = {"w_norm": torch.zeros(layer.weight.shape)}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {"b_norm": torch.zeros(layer.bias.shape)}))

    @property
    def reads_weight(self) -> bool:
        """It is what it is."""
        return False

    @property
    def shape(self) -> Shape:
        """The shape of its weight."""
        return tuple(self.of("w_norm").shape)

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The difference, times the strength."""
        return times(shaped(self.of("w_norm"), weight), strength)

    def bias_change(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """That of the bias, times the strength."""
        found = self.tensor("b_norm")
        return None if found is None else times(found, strength)


class IA3(Delta):
    """A factor less one for each row of a weight, or each of its columns where on_input is not 0 (Liu et al. 2022)."""

    algorithm: ClassVar[str] = "ia3"
    needed: ClassVar[frozenset[str]] = frozenset({"weight", "on_input"})
    optional: ClassVar[frozenset[str]] = frozenset()
    constants: ClassVar[frozenset[str]] = frozenset({"on_input"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Zeros for each row of a layer, or each column."""
        sizes = [1, -1, 1, 1] if layer.weight.ndim == 4 else [-1]
        weight = torch.zeros(layer.weight.shape[int(on_input)]).view(sizes)
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(float(on_input))})

    @property
    def shape(self) -> Shape:
        """A square as large as it is long: it tells one side only."""
        return (self.of("weight").numel(),) * 2

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The weight itself, times the factors, times the strength."""
        factors = self.of("weight").flatten()
        side = int(self.on_columns) if not factors.is_meta else int(len(factors) != len(weight))
        if len(factors) != weight.shape[side]:
            raise ValueError(f"{len(factors)} factors against {tuple(weight.shape)}")
        return weight.float() * factors.view(*[1] * side, -1, *[1] * (weight.ndim - side - 1)) * strength

    @property
    def on_columns(self) -> bool:
        """Whether it multiplies columns, which is to say, what is read."""
        return bool(self.of("on_input"))

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:
        """The factors, of rows; for columns what is added to the weight."""
        return super().ready(layer, dtype) if self.on_columns else (self.of("weight").flatten().to(dtype), None, None)

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:
        """What is added; of rows it is a share of what the layer made, its bias aside."""
        if len(ready) == 2:
            return super().output(layer, read, made, strength, ready)
        assert ready[0] is not None
        return without_bias(layer, made) * along(self.thinned(ready[0]), layer) * strength


def without_bias(layer: Layer, made: Tensor) -> Tensor:
    """What a layer made by its weight alone."""
    return made if layer.bias is None else made - along(layer.bias.to(made.dtype), layer)
