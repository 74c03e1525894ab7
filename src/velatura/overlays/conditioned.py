"""What becomes of what a text tower says, where a copy of it was tuned for each text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from velatura.base.hearing import hearing, is_negative, place_heard
from velatura.overlays.strength import LiveStrength
from velatura.overlays.tuning import Tuning, end_of, slerp

Blend = Literal["lerp", "slerp"]


class TunedConditioning:
    """Says texts by a tuned copy of their tower, as strongly as is wanted; each text is tuned for by itself."""

    def __init__(
        self, tuning: Tuning, strength: LiveStrength, blend: Blend, told: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._tuning, self._strength, self._blend, self._told = tuning, strength, blend, told

    def said(self, tower: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any], plain: Any) -> Any:
        """What the tower says, of what it says plainly; plain is whatever its forward gave."""
        if self._strength.number == 0 or (self._strength.side != "negative" and is_negative()):
            return plain
        ids: Tensor = named["input_ids"] if "input_ids" in named else arguments[0]
        strength = self._strengths(len(ids))
        rows = [self._row(tower, row, arguments, named, ids) if strength[row] else None for row in range(len(ids))]
        if all(row is None for row in rows):
            return plain
        found = mapped(partial(self._mixed, strength), plain, rows)
        self._told(_first(plain).detach(), _first(found).detach())
        return found

    def _strengths(self, rows: int) -> list[float]:
        """The strength of each text of a batch, or of the one that is encoded by itself."""
        each = self._strength.per_row(torch.empty(rows, 1, 1, device=self._strength.tensor.device))
        return cast("list[float]", each.flatten().expand(rows).tolist())  # pyright: ignore[reportUnknownMemberType]

    def _row(self, tower: nn.Module, row: int, arguments: Sequence[Any], named: Mapping[str, Any], ids: Tensor) -> Any:
        """What is said of one text by a copy that was tuned for it; None of a text without words."""
        if int(ids[row, 1]) == end_of(tower):
            return None
        # others' strengths are those of its row, unless it is encoded by itself already
        placed = hearing(row=row, rows=len(ids)) if place_heard() is None else nullcontext()
        with placed, torch.inference_mode(mode=False), torch.autocast(ids.device.type, enabled=False):
            own = [_row_of(each, row, len(ids)) for each in arguments]
            more = {name: _row_of(each, row, len(ids)) for name, each in named.items()}
            with torch.enable_grad():
                copied = self._tuning.tuned(tower, ids[row : row + 1].clone())
            with torch.no_grad():
                return cast("Any", copied)(*own, **more)

    def _mixed(self, strength: Sequence[float], before: Tensor, after: Sequence[Tensor | None]) -> Tensor:
        """Each row between what was said and what the tuned copy says."""
        rows = [
            old if new is None else self._between(old, new[0], share).to(old.dtype)
            for old, new, share in zip(before, after, strength, strict=True)
        ]
        return torch.stack(rows)

    def _between(self, before: Tensor, after: Tensor, share: float) -> Tensor:
        if self._blend == "slerp":
            return slerp(before.float(), after.float(), share)
        return torch.lerp(before.float(), after.float(), share)


def _row_of(value: Any, row: int, rows: int) -> Any:
    """One row of an argument that has as many."""
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return value[row : row + 1].clone()
    return value


def _first(said: Any) -> Tensor:
    return said[0]


def mapped(change: Callable[[Tensor, Sequence[Any]], Tensor], plain: Any, others: Sequence[Any]) -> Any:
    """A tower's answer with every tensor in it changed, given those at the same place in other answers."""
    if isinstance(plain, Tensor):
        return change(plain, others)
    if isinstance(plain, tuple):
        places = range(len(cast("tuple[Any, ...]", plain)))
        return tuple(
            mapped(change, plain[place], [None if each is None else each[place] for each in others]) for place in places
        )
    if plain is None:
        return None
    names = list(cast("Mapping[str, Any]", plain))
    fields = {
        name: mapped(change, plain[name], [None if each is None else each[name] for each in others]) for name in names
    }
    return type(plain)(**fields)
