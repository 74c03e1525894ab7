"""What an overlay does to a base, measured on its first step for next to nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.errors import VelaturaWarning


class WidthEffect(BaseModel):
    """What became of the contexts of one width.

    layers: how many read such contexts; k, v: the change relative to the context, |c' - c| / |c| in the mean over the
    layers, of what K and V read; None where no step was taken yet, or where compiled code ran unmeasured.
    """

    model_config = ConfigDict(frozen=True)

    width: int
    layers: int
    k: float | None = None
    v: float | None = None

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' * (self.layers != 1)}"
        if self.k is None or self.v is None:
            return f"{self.width}: {layers}, not measured yet"
        return f"{self.width}: {layers}, K reads {self.k:.1%} and V {self.v:.1%} else"


class Effect(BaseModel):
    """What an overlay touches, and how much it changes there; evaluations: of networks on constant contexts."""

    model_config = ConfigDict(frozen=True)

    overlay: str
    target: str
    widths: tuple[WidthEffect, ...] = ()
    evaluations: int = 0

    def __str__(self) -> str:
        return "\n".join([f"{self.overlay} on {self.target}", *(f"  {each}" for each in self.widths)])


class Listener:
    """What hears from the layers on their first step, and sums it up without making a GPU wait."""

    def __init__(self) -> None:
        self._layers: dict[str, int] = {}
        self._heard: dict[str, Tensor] = {}

    def expect(self, name: str, width: int) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
        """Count a layer in, and give back what is to be told what K and V read before and after."""
        self._layers[name] = width
        return partial(self._hear, name)

    def expect_output(self, name: str) -> Callable[[Tensor, Tensor], None]:
        """Count a layer in, and give back what is to be told what it made before and after."""
        return lambda before, after: None

    @torch.no_grad()
    def _hear(self, name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        pairs = [(old.float(), new.float()) for old, new in zip(before, after, strict=True)]
        squares = [((new - old).square().sum(), old.square().sum()) for old, new in pairs]
        # of an empty context, such as SDXL's for no prompt, all that is changed is new
        shares = [torch.where(whole > 0, change / whole, (change > 0).float()).sqrt() for change, whole in squares]
        self._heard[name] = torch.stack(shares)

    def effect(self, overlay: str, target: str, evaluations: int) -> Effect:
        """What was heard so far."""
        rows: list[WidthEffect] = []
        for width in sorted(set(self._layers.values())):
            names = [name for name, each in self._layers.items() if each == width]
            heard = [self._heard[name] for name in names if name in self._heard]
            means = torch.stack(heard).mean(0) if heard else None
            k, v = (None, None) if means is None else (means[0].item(), means[1].item())
            rows.append(WidthEffect(width=width, layers=len(names), k=k, v=v))
        return Effect(overlay=overlay, target=target, widths=tuple(rows), evaluations=evaluations)

    def warn_if_idle(self, overlay: str) -> None:
        """Warn where every layer was heard and none was changed."""
        heard = list(self._heard.values())
        if heard and len(heard) == len(self._layers) and not bool(torch.stack(heard).any()):
            why = "its weights are zero, or its strength is wherever it acts, or it was never trained"
            said = f"{overlay} changed nothing at all: {why}"
            self._heard.clear()  # once is enough
            warnings.warn(said, VelaturaWarning, stacklevel=3)
