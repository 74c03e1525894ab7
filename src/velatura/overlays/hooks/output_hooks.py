"""Changes of a layer's output: deltas of weights, which add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.errors import UnsupportedBase
from velatura.overlays.deltas.delta import Delta, Layer, Operands
from velatura.overlays.hooks.memo import autocast_dtype, tensor_version
from velatura.overlays.strength import LiveStrength


class OutputChange(Protocol):
    """Change of the output of one layer by one overlay."""

    def add(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        """Add the change to `output`, the result so far.

        Args:
            layer: The layer.
            inputs: What the layer read.
            base_output: The layer's output without any change.
            output: The output with the changes before this one.
        """
        ...


class TimestepRecorder:
    """Hook on a UNet that keeps the timesteps of its current call.

    Attributes:
        timesteps: (rows,), or () for all rows; None before the first call.
    """

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None

    def pre_hook(self, _unet: nn.Module, arguments: tuple[object, ...], options: dict[str, object]) -> None:
        """Read the timesteps from the arguments of the UNet."""
        timesteps = options["timestep"] if "timestep" in options else arguments[1]
        self.timesteps = timesteps if isinstance(timesteps, Tensor) else torch.tensor(timesteps)


class DeltaChange:
    """Delta of one layer, at the strength of the overlay times a factor of the layer."""

    evaluations: int = 0  # it has no networks

    def __init__(
        self,
        delta: Delta,
        strength: LiveStrength,
        factor: float,
        on_measure: Callable[[Tensor, Tensor], None],
        recorder: TimestepRecorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._delta, self._strength, self._factor, self._on_measure = delta, strength, factor, on_measure
        self._is_unmeasured = True
        self._cached: tuple[object, Operands] | None = None
        self._needs_weight = delta.needs_weight

    def clear_cache(self) -> None:
        """Forget all computed values."""
        self._cached = None

    def add(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        """Add the delta's change to the output; rows of strength 0 are returned exactly."""
        if torch.compiler.is_compiling():
            return self._add_delta(layer, inputs, base_output, output)
        if self._strength.number == 0 or self._is_dropped():
            return output
        self._move_to(inputs.device)
        new_output = self._add_delta(layer, inputs, base_output, output)
        if self._is_unmeasured:
            self._is_unmeasured = False
            self._on_measure(output, new_output)
        return new_output

    def _add_delta(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        delta, strength = self._delta, self._strength.per_row(base_output) * self._factor
        if delta.dropout:
            inputs = functional.dropout(inputs, delta.dropout, delta.training)
        operands = self._operands(layer, inputs)
        if self._recorder is not None and self._recorder.timesteps is not None:
            operands = delta.select_ranks(operands, self._recorder.timesteps.to(inputs.device))
        change = delta.output_delta(layer, inputs, base_output, strength, operands)
        new_output = (output + change).to(output.dtype)
        if self._factor and not torch.compiler.is_compiling() and self._strength.number:
            return new_output
        return torch.where(strength == 0, output, new_output)

    def _is_dropped(self) -> bool:
        """Draw whether module dropout leaves the delta out of this training step."""
        probability = self._delta.module_dropout
        return bool(probability) and self._delta.training and bool(torch.rand(()) < probability)

    def _operands(self, layer: Layer, inputs: Tensor) -> Operands:
        """Return the delta's operands, cached until the delta changes; in training they are computed at each call."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self._delta.needs_grad):
            return self._delta.prepare_operands(layer, inputs.dtype)
        tensors = self._delta.tensors
        if self._needs_weight:
            _check_weight_present(layer)
            tensors = [layer.weight, *tensors]
        state = inputs.dtype, autocast_dtype(inputs), *map(tensor_version, tensors)
        if self._cached is None or self._cached[0] != state:
            self._cached = state, self._delta.prepare_operands(layer, inputs.dtype)
        return self._cached[1]

    def _move_to(self, device: torch.device) -> None:
        self._strength.move_to(device)
        if self._delta.tensors[0].device != device:
            self._delta.to(device)


def _check_weight_present(layer: Layer) -> None:
    """Refuse a layer whose weight is on its device only while the layer computes."""
    if layer.weight.is_meta:
        raise UnsupportedBase(
            "the weight of a layer is offloaded right after its use, and the overlay depends on the weight: "
            "call enable_model_cpu_offload() instead of enable_sequential_cpu_offload()"
        )
