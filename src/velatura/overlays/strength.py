"""How strongly an overlay acts, in a form that hooks can read while a model runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.encoding_context import BatchRow, current_row
from velatura.errors import BadStrength
from velatura.prompts.strengths import PromptSide


@dataclass(frozen=True)
class Strength:
    """Two strengths of one overlay: how strongly it acts in the text towers, and how strongly in the UNet."""

    text: float | Tensor = 1.0
    unet: float | Tensor = 1.0


class LiveStrength:
    """A strength that may change between two steps: 0 is off, 1 as trained.

    tensor: 0-d, or one value a row, always the same object: compiled code reads it and need not be traced again.
    number: the one value that all rows share, or None where they differ; read without waiting for a GPU.
    version: counts the changes. side: which half of a guided batch the overlay acts on, negative prompts being the
    first half, as in diffusers. text: the strength in the text towers, which moves along unless it is set apart.
    """

    def __init__(
        self, value: float | Tensor | Strength, device: torch.device | None = None, side: PromptSide = "both"
    ) -> None:
        self.side: PromptSide = side
        self.version = 0
        self._text: LiveStrength | None = None
        if isinstance(value, Strength):
            self._text = LiveStrength(value.text, device, side)
            value = value.unet
        with disable_inference_mode():
            new_tensor = strength_tensor(value)
            self._common_value = _common_value(new_tensor)
            self.tensor = new_tensor.to(device or new_tensor.device)

    @property
    def number(self) -> float | None:
        """The one value of all rows, or None."""
        return self._common_value if self.side == "both" or self._common_value == 0 else None

    @property
    def text(self) -> LiveStrength:
        """The strength in the text towers."""
        if self._text is None:
            self._text = LiveStrength(self.tensor, self.tensor.device, self.side)
        return self._text

    def set(self, value: float | Tensor | Strength) -> None:
        """Change the strength in place; it counts from the next reading on."""
        if self._text is not None:
            self._text.set(value.text if isinstance(value, Strength) else value)
        if isinstance(value, Strength):
            self._text = self._text or LiveStrength(value.text, self.tensor.device, self.side)
            value = value.unet
        with disable_inference_mode():
            new_tensor = strength_tensor(value)
            on_device = new_tensor.to(self.tensor.device)
            if on_device.shape == self.tensor.shape:
                self.tensor.copy_(on_device)
            else:
                self.tensor.data = on_device  # hooks hold on to this very tensor
        self._common_value = _common_value(new_tensor)
        self.version += 1  # last, so that another thread never remembers the old strength under the new version

    def move_to(self, device: torch.device) -> None:
        """Move to a device, unless there already."""
        if self.tensor.device != device:
            with disable_inference_mode():
                self.tensor = self.tensor.to(device)

    def per_row(self, context: Tensor) -> Tensor:
        """The strength as it multiplies a context (batch, tokens, width): 0-d, or (batch, 1, 1).

        Fewer values than rows are taken for pictures, of which a guided batch holds every one twice. While a text is
        encoded by itself it is the one value of that text, 0-d.
        """
        if not torch.compiler.is_compiling() and (batch_row := current_row()) is not None:
            return self._strength_at(batch_row)
        rows, strength = context.shape[0], self.tensor
        if strength.ndim == 0 and self.side == "both":
            return strength
        if strength.ndim and rows % strength.shape[0]:
            raise BadStrength(
                f"{strength.shape[0]} strengths do not fit a batch of {rows}: give one, one for each row, "
                "or one for each picture"
            )
        row_strengths = strength.repeat(rows // strength.shape[0]) if strength.ndim else strength.repeat(rows)
        if self.side != "both":
            row_strengths = row_strengths * self._side_mask(rows)
        return row_strengths.view(rows, *(1,) * (context.ndim - 1))

    def _strength_at(self, batch_row: BatchRow) -> Tensor:
        """The value for the text at a place, 0-d."""
        strength = self.tensor
        if strength.ndim and batch_row.rows % len(strength):
            raise BadStrength(
                f"{len(strength)} strengths do not fit {batch_row.rows} texts: give one, or one for each of them"
            )
        value = strength[batch_row.row % len(strength)] if strength.ndim else strength
        if self.side == "both":
            return value
        if batch_row.negative is None:
            return value * self._side_mask(batch_row.rows)[batch_row.row]
        return value * (batch_row.negative == (self.side == "negative"))

    def _side_mask(self, rows: int) -> Tensor:
        """One for the rows of our side, zero for the others."""
        if rows % 2:
            raise BadStrength(
                f"a batch of {rows} is no guided one, so it has no {self.side} half: leave out on={self.side!r}"
            )
        is_second_half = torch.arange(rows, device=self.tensor.device) >= rows // 2
        return is_second_half if self.side == "prompt" else ~is_second_half


@contextmanager
def disable_inference_mode() -> Generator[None]:
    """Make tensors that can be written to later: what inference mode makes cannot, once that is left."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def strength_tensor(value: float | Tensor) -> Tensor:
    """Turn a strength into a tensor of its own, 0-d or (batch,), refusing what is not finite."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise BadStrength(
            f"a strength must be a number or a tensor, not {str(value)[:40]!r}: 0 is off, 1 as trained"
        ) from None
    if tensor.ndim > 1 or not tensor.numel():
        raise BadStrength(f"a strength of shape {tuple(tensor.shape)} fits no batch: give one number, or one per row")
    if not bool(tensor.isfinite().all()):
        raise BadStrength(f"a strength must be finite, not {value}: 0 is off, 1 as trained")
    return tensor


def _common_value(strength: Tensor) -> float | None:
    first = strength.flatten()[0]
    return first.item() if bool((strength == first).all()) else None
