"""Strengths of overlays, in a form that hooks can read while a model runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.encoding_context import BatchRow, current_row, negative_row_count
from velatura.errors import BadStrength, quantity
from velatura.overlays.hooks.guided_rows import GuidedRows
from velatura.prompts.strengths import PromptSide


@dataclass(frozen=True)
class Strength:
    """Separate strengths of one overlay for the text encoders and for the UNet.

    Attributes:
        text: Strength in the text encoders: 0 is off, 1 is as trained. One number, or one for each picture or row.
        unet: Strength in the UNet, likewise.
    """

    text: float | Tensor = 1.0
    unet: float | Tensor = 1.0


class LiveStrength:
    """Strength that may change between two steps: 0 is off, 1 is as trained.

    Attributes:
        tensor: 0-d, or one value for each row. It stays the same object, so compiled code reads the new value without
            being traced again.
        version: Number of changes so far.
        side: Rows of a guided batch on which the overlay acts.
        guided_rows: Knows which rows of a guided batch are prompts; None for halves.
    """

    def __init__(
        self,
        value: float | Tensor | Strength,
        device: torch.device | None = None,
        side: PromptSide = "both",
        guided_rows: GuidedRows | None = None,
    ) -> None:
        self.side: PromptSide = side
        self.guided_rows = guided_rows
        self.version = 0
        self._text: LiveStrength | None = None
        if isinstance(value, Strength):
            self._text = LiveStrength(value.text, device, side)
            value = value.unet
        with disable_inference_mode():
            new_tensor = strength_tensor(value)
            self._common_value, self._extremes = _common_value(new_tensor), _extremes(new_tensor)
            self.tensor = new_tensor.to(device or new_tensor.device)

    @property
    def number(self) -> float | None:
        """Return the one value of all rows, or None if they differ; reading it does not wait for a GPU."""
        return self._common_value if self.side == "both" or self._common_value == 0 else None

    @property
    def text(self) -> LiveStrength:
        """Return the strength in the text encoders; it follows the UNet's unless it was set separately."""
        if self._text is None:
            self._text = LiveStrength(self.tensor, self.tensor.device, self.side)
        return self._text

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return the lowest and highest value of any row, in the UNet and in the text encoders."""
        return self._extremes if self._text is None else (*self._extremes, *self._text.numbers)

    def set(self, value: float | Tensor | Strength) -> None:
        """Change the strength in place; hooks use the new value from their next call on."""
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
                self.tensor.data = on_device  # hooks keep a reference to this tensor object
        self._common_value, self._extremes = _common_value(new_tensor), _extremes(new_tensor)
        self.version += 1  # last, so that another thread never remembers the old strength under the new version

    def move_to(self, device: torch.device) -> None:
        """Move the tensor to a device, if it is on another one."""
        if self.tensor.device != device:
            with disable_inference_mode():
                self.tensor = self.tensor.to(device)

    def per_row(self, context: Tensor) -> Tensor:
        """Return the strength in a shape that broadcasts against activations.

        Args:
            context: Activations (rows, ...), such as a context (rows, tokens, width).

        Returns:
            0-d if all rows have one value, else (rows, 1, ...). Fewer values than rows count as values of pictures,
            which a guided batch holds twice. While one text of a batch is encoded by itself: its value, 0-d.

        Raises:
            BadStrength: If the values do not fit the number of rows, or a batch without halves has a side.
        """
        if not torch.compiler.is_compiling() and (batch_row := current_row()) is not None:
            return self._strength_at(batch_row)
        strength = self.tensor
        if strength.ndim == 0 and self.side == "both":
            return strength
        layer_rows = context.shape[0]
        rows, part = (layer_rows, slice(None)) if self.guided_rows is None else self.guided_rows.locate(layer_rows)
        if strength.ndim and not self._fits_rows(strength.shape[0], rows):
            raise BadStrength(
                f"{strength.shape[0]} strengths do not fit a batch of {rows}: give one number, one for each row, "
                "or one for each picture, which a guided batch holds twice"
            )
        row_strengths = strength.repeat(rows // strength.shape[0]) if strength.ndim else strength.repeat(rows)
        if self.side != "both":
            row_strengths = row_strengths * self._side_mask(rows)
        return row_strengths[part].view(layer_rows, *(1,) * (context.ndim - 1))

    def _strength_at(self, batch_row: BatchRow) -> Tensor:
        """Return the value for one text of a batch, 0-d."""
        strength = self.tensor
        if strength.ndim and not self._fits_rows(len(strength), batch_row.rows):
            raise BadStrength(
                f"{len(strength)} strengths do not fit {quantity(batch_row.rows, 'text')}: give one number, or one "
                "for each text"
            )
        value = strength[batch_row.row % len(strength)] if strength.ndim else strength
        if self.side == "both":
            return value
        if batch_row.negative is None:
            return value * self._side_mask(batch_row.rows)[batch_row.row]
        return value * (batch_row.negative == (self.side == "negative"))

    def _fits_rows(self, count: int, rows: int) -> bool:
        """Return True for one strength for all rows, for each row, or for each picture of a guided batch.

        A guided batch holds each picture as often as the model that makes it says, unless velatura's own guidance says
        how many rows are prompts.
        """
        if count in {1, rows}:
            return True
        negative_rows = None if torch.compiler.is_compiling() else negative_row_count()
        if negative_rows is not None:
            return count == rows - negative_rows
        copy_counts = (2,) if self.guided_rows is None else self.guided_rows.copy_counts()
        return any(copies * count == rows for copies in copy_counts)

    def _side_mask(self, rows: int) -> Tensor:
        """Return True for the rows of this side, False for the others.

        The negative prompts come first, unless the model that makes the batch has another order.
        """
        negative_rows = None if torch.compiler.is_compiling() else negative_row_count()
        if negative_rows is None:
            is_prompt = self._prompt_mask(rows)
        else:
            is_prompt = torch.arange(rows, device=self.tensor.device) >= negative_rows
        return is_prompt if self.side == "prompt" else ~is_prompt

    def _prompt_mask(self, rows: int) -> Tensor:
        """Return True for the rows that are prompts in a batch of another program."""
        groups = (False, True) if self.guided_rows is None else self.guided_rows.prompt_groups(self.side)
        if rows % len(groups):
            raise BadStrength(
                f"a batch of {rows} is not a guided batch and has no {self.side} half: leave out on={self.side!r}"
            )
        return torch.tensor(groups, device=self.tensor.device).repeat_interleave(rows // len(groups))


@contextmanager
def disable_inference_mode() -> Generator[None]:
    """Make ordinary tensors inside inference mode too: inference tensors cannot be written to after it ends."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def strength_tensor(value: float | Tensor) -> Tensor:
    """Copy a strength into a float32 tensor, 0-d or (rows,); raises BadStrength if it is not finite."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise BadStrength(
            f"a strength must be a number or a tensor, not {str(value)[:40]!r}: 0 is off, 1 is as trained"
        ) from None
    if tensor.ndim > 1 or not tensor.numel():
        raise BadStrength(
            f"a strength has the shape {tuple(tensor.shape)}: give one number, or a vector with one for each row"
        )
    if not bool(tensor.isfinite().all()):
        raise BadStrength(f"a strength must be finite, not {value}: 0 is off, 1 is as trained")
    return tensor


def _common_value(strength: Tensor) -> float | None:
    first = strength.flatten()[0]
    return first.item() if bool((strength == first).all()) else None


def _extremes(strength: Tensor) -> tuple[float, float]:
    return strength.min().item(), strength.max().item()
