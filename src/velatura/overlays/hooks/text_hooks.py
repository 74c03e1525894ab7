"""Hook of aesthetic gradients on a text encoder: texts are encoded by copies that were tuned for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from velatura.base.encoding_context import current_row, encoding_row, is_negative
from velatura.overlays.aesthetic_tuning import AestheticTuning, eos_token_id, slerp
from velatura.overlays.strength import LiveStrength

BlendMode = Literal["lerp", "slerp"]


class AestheticHook:
    """Hook that encodes texts by tuned copies of the text encoder, and blends the result by the strength.

    A text has a copy of its own, so that its encoding does not depend on the other texts of the batch.
    """

    def __init__(
        self,
        tuning: AestheticTuning,
        strength: LiveStrength,
        blend: BlendMode,
        on_measure: Callable[[Tensor, Tensor], None],
    ) -> None:
        self._tuning, self._strength, self._blend, self._on_measure = tuning, strength, blend, on_measure

    def forward_hook(self, tower: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any], output: Any) -> Any:
        """Return the encoder's output, blended with that of the tuned copies."""
        if self._strength.number == 0 or (self._strength.side != "negative" and is_negative()):
            return output
        ids: Tensor = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        strengths = self._row_strengths(len(ids))
        row_outputs = [
            self._encode_row(tower, row, arguments, keywords, ids) if strengths[row] else None
            for row in range(len(ids))
        ]
        if all(row_output is None for row_output in row_outputs):
            return output
        result = map_output(partial(self._blend_rows, strengths), output, row_outputs)
        self._on_measure(_first_tensor(output).detach(), _first_tensor(result).detach())
        return result

    def _row_strengths(self, rows: int) -> list[float]:
        """Return the strengths of the texts of a batch, or of the one that is encoded by itself."""
        row_strengths = self._strength.per_row(torch.empty(rows, 1, 1, device=self._strength.tensor.device))
        return cast("list[float]", row_strengths.flatten().expand(rows).tolist())  # pyright: ignore[reportUnknownMemberType]

    def _encode_row(
        self, tower: nn.Module, row: int, arguments: Sequence[Any], keywords: Mapping[str, Any], ids: Tensor
    ) -> Any:
        """Encode one text by a copy that is tuned for it; return None for an empty text."""
        if int(ids[row, 1]) == eos_token_id(tower):
            return None
        # tells other overlays which row this is, unless the caller encodes row by row already
        row_context = encoding_row(row=row, rows=len(ids)) if current_row() is None else nullcontext()
        with row_context, torch.inference_mode(mode=False), torch.autocast(ids.device.type, enabled=False):
            row_arguments = [_take_row(argument, row, len(ids)) for argument in arguments]
            row_keywords = {name: _take_row(argument, row, len(ids)) for name, argument in keywords.items()}
            with torch.enable_grad():
                tuned_tower = self._tuning.tune(tower, ids[row : row + 1].clone())
            with torch.no_grad():
                return cast("Any", tuned_tower)(*row_arguments, **row_keywords)

    def _blend_rows(self, strengths: Sequence[float], before: Tensor, after: Sequence[Tensor | None]) -> Tensor:
        """Interpolate between the rows of the encoder's output and those of the tuned copies."""
        rows = [
            old if new is None else self._interpolate(old, new[0], share).to(old.dtype)
            for old, new, share in zip(before, after, strengths, strict=True)
        ]
        return torch.stack(rows)

    def _interpolate(self, before: Tensor, after: Tensor, share: float) -> Tensor:
        if self._blend == "slerp":
            return slerp(before.float(), after.float(), share)
        return torch.lerp(before.float(), after.float(), share)


def _take_row(value: Any, row: int, rows: int) -> Any:
    """Return one row of an argument with as many rows as the batch; other arguments unchanged."""
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return value[row : row + 1].clone()
    return value


def _first_tensor(output: Any) -> Tensor:
    return output[0]


def map_output(change: Callable[[Tensor, Sequence[Any]], Tensor], output: Any, others: Sequence[Any]) -> Any:
    """Change all tensors in a model output: a tensor, a tuple, or a transformers ModelOutput.

    Args:
        change: Gets a tensor, and the tensors at the same place in the other outputs.
        output: The output.
        others: Outputs of the same structure; an entry may be None.
    """
    if isinstance(output, Tensor):
        return change(output, others)
    if isinstance(output, tuple):
        positions = range(len(cast("tuple[Any, ...]", output)))
        return tuple(
            map_output(change, output[position], [None if other is None else other[position] for other in others])
            for position in positions
        )
    if output is None:
        return None
    names = list(cast("Mapping[str, Any]", output))
    fields = {
        name: map_output(change, output[name], [None if other is None else other[name] for other in others])
        for name in names
    }
    return type(output)(**fields)
