"""Effect of an overlay on a base, measured on its first step at almost no cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.errors import warn
from velatura.overlays.attention_layers import BLOCK_PREFIXES

EFFECT_PARTS = ("text", "in", "mid", "out", "unet")


class WidthEffect(BaseModel):
    """Effect on the contexts of one width.

    Attributes:
        width: Features of the contexts.
        layers: Number of attention layers that read such contexts.
        k, v: Relative change of what K and V read, |c' - c| / |c|, as a mean over the layers. None before the first
            step, and in compiled code, which is not measured.
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
        return f"{self.width}: {layers}, input changed by {self.k:.1%} for K and {self.v:.1%} for V"


class OutputEffect(BaseModel):
    """Effect on the outputs of the layers of one part.

    Attributes:
        part: "in", "mid", "out", "unet" for layers outside these blocks, or "text".
        layers: Number of layers that the overlay changes.
        change: Relative change |y' - y| / |y|, as a mean over the layers. None before the first step, and in compiled
            code, which is not measured.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    layers: int
    change: float | None = None

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' * (self.layers != 1)}"
        if self.change is None:
            return f"{self.part}: {layers}, not measured yet"
        return f"{self.part}: {layers}, output changed by {self.change:.1%}"


class WordEffect(BaseModel):
    """Vectors of a word, and whether prompts use it.

    Attributes:
        word: Name of the embedding.
        vectors: Number of its vectors.
        length: Mean length of the vectors, relative to the long token vectors of the base.
        named: True if an encoded text contained the word; None before the first text.
    """

    model_config = ConfigDict(frozen=True)

    word: str
    vectors: int
    length: float
    named: bool | None = None

    def __str__(self) -> str:
        count = f"{self.vectors} vector{'s' * (self.vectors != 1)}"
        status = {None: "no text encoded yet", False: "not used in any text", True: "used"}[self.named]
        return f"{self.word!r}: {count}, {self.length:.2f} times as long as the base's token vectors, {status}"


class Effect(BaseModel):
    """Effect of one overlay on one target: the layers, contexts and words that it changes, and by how much.

    Attributes:
        overlay: Card of the overlay, in one line.
        target: Name of the base or pipeline.
        widths: Effects on contexts, by width (hypernetworks).
        outputs: Effects on outputs of layers, by part (LoRAs, differences, aesthetics).
        words: Effects on words (embeddings).
        evaluations: Number of network evaluations on contexts that stay constant through a generation.
    """

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
    """Measure of the changes that hooks report on their first step; it does not wait for a GPU."""

    def __init__(self) -> None:
        self._layers: dict[str, int | str] = {}
        self._changes: dict[str, Tensor] = {}
        self._measures: dict[str, Callable[[], tuple[int, float]]] = {}
        self._named: dict[str, bool] = {}

    def add_context_layer(self, name: str, width: int) -> Callable[[Sequence[Tensor], Sequence[Tensor]], None]:
        """Register an attention layer, and return the callback for what K and V read before and after the change."""
        self._layers[name] = width
        return partial(self._record, name)

    def add_output_layer(self, name: str) -> Callable[[Tensor, Tensor], None]:
        """Register a layer by its name in the target, and return the callback for its output before and after.

        An overlay that changes all outputs of a text encoder registers the encoder as one layer.
        """
        self._layers[name] = _part_of_layer(name)
        return lambda before, after: self._record(name, [before], [after])

    def add_word(self, word: str, measure: Callable[[], tuple[int, float]]) -> Callable[[bool], None]:
        """Register a word, and return the callback that hears for every encoded text whether it contains the word.

        Args:
            word: Name of the embedding.
            measure: Returns the number of its vectors, and their mean length relative to the base's token vectors.
        """
        self._measures[word] = measure

        def on_named(is_named: bool) -> None:
            self._named[word] = self._named.get(word, False) or is_named

        return on_named

    @torch.no_grad()
    def _record(self, name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        pairs = [(old.float(), new.float()) for old, new in zip(before, after, strict=True)]
        squares = [((new - old).square().sum(), old.square().sum()) for old, new in pairs]
        # any change of an all-zero context, such as SDXL's empty prompt, counts as 100 %
        ratios = [torch.where(whole > 0, change / whole, (change > 0).float()).sqrt() for change, whole in squares]
        self._changes[name] = torch.stack(ratios)

    def effect(self, overlay: str, target: str, evaluations: int) -> Effect:
        """Return the measurements so far."""
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
        """Return the number of layers of a group, and the mean of their measured changes."""
        names = [name for name, layer_group in self._layers.items() if layer_group == group]
        changes = [self._changes[name] for name in names if name in self._changes]
        return len(names), torch.stack(changes).mean(0) if changes else None

    def warn_if_no_effect(self, overlay: str) -> None:
        """Warn once if all layers were measured and none changed, or if no text contained the word."""
        changes = list(self._changes.values())
        if changes and len(changes) == len(self._layers) and not any(bool(change.any()) for change in changes):
            self._changes.clear()  # so that it warns only once
            warn(f"{overlay} changed nothing at all: its weights are zero, its strength is 0, or it was never trained")
        for word in [word for word, named in self._named.items() if not named]:
            del self._named[word]
            warn(f"{overlay} changed nothing at all: no text contains its name {word!r}")


def _part_of_layer(name: str) -> str:
    """Return the part of the target in which a layer is."""
    if not name.startswith("unet."):
        return "text"
    path = name.removeprefix("unet.")
    return next((block for block, prefix in BLOCK_PREFIXES.items() if path.startswith(prefix)), "unet")
