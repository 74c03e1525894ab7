"""What an overlay does to a base, measured on its first step for next to nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.errors import VelaturaWarning
from velatura.overlays.attention_layers import BLOCK_PREFIXES

EFFECT_PARTS = ("text", "in", "mid", "out", "unet")


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


class OutputEffect(BaseModel):
    """What became of what the layers of one part compute.

    part: "in", "mid", "out", "unet" for what is in none of its blocks, or "text"; change: |y' - y| / |y| in the mean
    over the layers, None where no step was taken yet, or where compiled code ran unmeasured.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    layers: int
    change: float | None = None

    def __str__(self) -> str:
        layers, give = (f"{self.layers} layers", "give") if self.layers != 1 else ("1 layer", "gives")
        if self.change is None:
            return f"{self.part}: {layers}, not measured yet"
        return f"{self.part}: {layers}, which {give} {self.change:.1%} else"


class WordEffect(BaseModel):
    """What a word stands for.

    length: of its vectors in the mean, where long ones of the base's own words are of length 1; named: whether a text
    that was read named it, None where none was read.
    """

    model_config = ConfigDict(frozen=True)

    word: str
    vectors: int
    length: float
    named: bool | None = None

    def __str__(self) -> str:
        count = f"{self.vectors} vector{'s' * (self.vectors != 1)}"
        status = {None: "no text was read yet", False: "no text named it", True: "named"}[self.named]
        return f"{self.word!r}: {count} of {self.length:.2f} times the length of words, {status}"


class Effect(BaseModel):
    """What an overlay touches, and how much it changes there; evaluations: of networks on constant contexts."""

    model_config = ConfigDict(frozen=True)

    overlay: str
    target: str
    widths: tuple[WidthEffect, ...] = ()
    outputs: tuple[OutputEffect, ...] = ()
    words: tuple[WordEffect, ...] = ()
    evaluations: int = 0

    def __str__(self) -> str:
        rows = (*self.widths, *self.outputs, *self.words)
        return "\n".join([f"{self.overlay} on {self.target}", *(f"  {row}" for row in rows)])


class EffectMeter:
    """What hears from the layers on their first step, and sums it up without making a GPU wait."""

    def __init__(self) -> None:
        self._layers: dict[str, int | str] = {}
        self._changes: dict[str, Tensor] = {}
        self._measures: dict[str, Callable[[], tuple[int, float]]] = {}
        self._named: dict[str, bool] = {}

    def add_context_layer(self, name: str, width: int) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
        """Count a layer in, and give back what is to be told what K and V read before and after."""
        self._layers[name] = width
        return partial(self._record, name)

    def add_output_layer(self, name: str) -> Callable[[Tensor, Tensor], None]:
        """Count a layer in by its name in the target, and give back what is to be told what it makes before and after.

        The text towers stand there whole where an overlay has to do with all that they say.
        """
        self._layers[name] = _part_of_layer(name)
        return lambda before, after: self._record(name, [before], [after])

    def add_word(self, word: str, measure: Callable[[], tuple[int, float]]) -> Callable[[bool], None]:
        """Count a word in, and give back what is to be told of each text that is read whether it names it.

        measure: tells how many vectors it stands for, and how long they are where words are of length 1.
        """
        self._measures[word] = measure

        def on_named(is_named: bool) -> None:
            self._named[word] = self._named.get(word, False) or is_named

        return on_named

    @torch.no_grad()
    def _record(self, name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        pairs = [(old.float(), new.float()) for old, new in zip(before, after, strict=True)]
        squares = [((new - old).square().sum(), old.square().sum()) for old, new in pairs]
        # of an empty context, such as SDXL's for no prompt, all that is changed is new
        ratios = [torch.where(whole > 0, change / whole, (change > 0).float()).sqrt() for change, whole in squares]
        self._changes[name] = torch.stack(ratios)

    def effect(self, overlay: str, target: str, evaluations: int) -> Effect:
        """What was heard so far."""
        widths: list[WidthEffect] = []
        for width in sorted({group for group in self._layers.values() if isinstance(group, int)}):
            count, mean_change = self._group_mean(width)
            k, v = (None, None) if mean_change is None else (mean_change[0].item(), mean_change[1].item())
            widths.append(WidthEffect(width=width, layers=count, k=k, v=v))
        outputs: list[OutputEffect] = []
        for part in (name for name in EFFECT_PARTS if name in self._layers.values()):
            count, mean_change = self._group_mean(part)
            outputs.append(
                OutputEffect(part=part, layers=count, change=None if mean_change is None else mean_change[0].item())
            )
        fields = {"overlay": overlay, "target": target, "evaluations": evaluations}
        return Effect.model_validate({**fields, "widths": widths, "outputs": outputs, "words": self._word_effects()})

    def _word_effects(self) -> list[WordEffect]:
        measurements = {word: measure() for word, measure in self._measures.items()}
        return [
            WordEffect(word=word, vectors=count, length=length, named=self._named.get(word))
            for word, (count, length) in measurements.items()
        ]

    def _group_mean(self, group: int | str) -> tuple[int, Tensor | None]:
        """How many layers there are of a group, and what was heard of them in the mean."""
        names = [name for name, layer_group in self._layers.items() if layer_group == group]
        changes = [self._changes[name] for name in names if name in self._changes]
        return len(names), torch.stack(changes).mean(0) if changes else None

    def warn_if_no_effect(self, overlay: str) -> None:
        """Warn where every layer was heard and none was changed."""
        changes = list(self._changes.values())
        if changes and len(changes) == len(self._layers) and not any(bool(change.any()) for change in changes):
            why = "its weights are zero, or its strength is wherever it acts, or it was never trained"
            message = f"{overlay} changed nothing at all: {why}"
            self._changes.clear()  # once is enough
            warnings.warn(message, VelaturaWarning, stacklevel=3)
        for word in [word for word, named in self._named.items() if not named]:
            del self._named[word]
            warnings.warn(f"{overlay} changed nothing at all: no text named it {word!r}", VelaturaWarning, stacklevel=3)


def _part_of_layer(name: str) -> str:
    """Which part of a target a layer is in."""
    if not name.startswith("unet."):
        return "text"
    path = name.removeprefix("unet.")
    return next((block for block, prefix in BLOCK_PREFIXES.items() if path.startswith(prefix)), "unet")
