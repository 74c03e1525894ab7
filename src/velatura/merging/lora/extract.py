"""Extract a LoRA from the difference of two models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.families import FAMILIES, Prediction
from velatura.base.pipeline import freeze_models
from velatura.card import Card
from velatura.errors import BadFile, BadOverlay, NoEffect
from velatura.formats.inspect.inspect import inspect_file
from velatura.library.hashes import Hashes
from velatura.merging.checkpoints.merged_prediction import find_prediction
from velatura.merging.checkpoints.weights import ModelSource, share_pipeline
from velatura.merging.lora.model_layers import ModelLayers
from velatura.merging.lora.svd import check_rank, nearest_low_rank
from velatura.merging.measures import (
    MODEL_PARTS,
    WHOLE_MODEL,
    format_ranks,
    part_of_module,
    relative_error,
    squared_norm,
)
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.difference import warn_of_other_prediction
from velatura.overlays.lora.lora import Lora
from velatura.overlays.strength import disable_inference_mode
from velatura.tensors import StrPath

OnWeight = Callable[[int, int], None]  # called with how many weights are compared, and how many there are

DEFAULT_RANK = 32


class PartFit(BaseModel):
    """Fit of a LoRA to the difference of two models, in one part of them or in the whole.

    Attributes:
        part: The part, or "whole".
        layers: How many layers the LoRA has there.
        ranks: The least and the largest rank of those layers.
        missed: The size of the error relative to the size of the difference, 1 if everything is missed; None if the
            models do not differ.
        left_out: The share of that size in norms, biases and embedding tables, which a LoRA does not change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    layers: int
    ranks: tuple[int, int] = (0, 0)
    missed: float | None = None
    left_out: float | None = None

    def __str__(self) -> str:
        if self.missed is None or self.left_out is None:
            return f"{self.part:9}no difference"
        line = f"{self.part:9}{self.layers} layers of {format_ranks(self.ranks)}"
        line = f"{line}, {self.missed:.1%} of the difference missed"
        if self.left_out < 5e-4:
            return line
        return f"{line}, {self.left_out:.1%} in layers that a LoRA does not change"


class ExtractReport(BaseModel):
    """Fit of an extracted LoRA to the difference of two models, part by part and in the whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    other: str
    parts: tuple[PartFit, ...]

    @property
    def whole(self) -> PartFit:
        """Fit of all parts together."""
        return self.parts[-1]

    def __str__(self) -> str:
        return "\n".join([f"{self.other} minus {self.base} as a LoRA", *(f"  {part}" for part in self.parts)])


@torch.no_grad()
@freeze_models
@check_arguments()
def extract(
    base: ModelSource,
    other: ModelSource,
    rank: int | None = None,
    *,
    tolerance: float | None = None,
    conv_rank: int | None = None,
    text: bool = True,
    name: str = "",
    on_weight: OnWeight | None = None,
) -> tuple[Lora, ExtractReport]:
    """Extract the difference of two models as a LoRA for the first one.

    If `base` is an inpainting or pix2pix model and `other` is not, the further input channels of `base` stay as they
    are, and a warning says so.

    Args:
        base: The model that the LoRA is for: a base, or a file or folder, which is read layer by layer.
        other: The model that base and LoRA together should come close to.
        rank: The rank of each layer, 32 if no tolerance is given; with a tolerance the largest rank allowed.
        tolerance: Take in each layer the least rank that misses no more of its change than this share, such as 0.3.
        conv_rank: The same as `rank` for convolutions larger than 1x1, `rank` by default. 0 leaves them out.
        text: Extract the changes of the text encoders too.
        name: The name of the LoRA, that of the other model by default.
        on_weight: Called after each weight with how many are done, and how many there are.

    Returns:
        The LoRA, and a report of its ranks and of the share of the difference that it misses.

    Raises:
        BadOverlay: The rank or the tolerance is out of range.
        WrongBase: The models are of different structure, or only `other` is an inpainting or pix2pix model.
        NoEffect: The models do not differ.
        BadFile: A tensor of one of the models has NaN or infinite values.
    """
    base, other = share_pipeline(base), share_pipeline(other)
    rank = DEFAULT_RANK if rank is None and tolerance is None else rank
    check_rank(rank, tolerance)
    if conv_rank is not None and conv_rank < 0:
        raise BadOverlay(f"a LoRA's convolutions cannot have rank {conv_rank}: give 1 or more, or 0 for none")
    conv_rank = rank if conv_rank is None else conv_rank
    base_layers, other_layers = ModelLayers.from_model(base), ModelLayers.from_model(other)
    base_layers.check_same_structure(other_layers)
    warn_of_other_prediction(
        (base_layers.name, find_prediction(base_layers.weights)),
        (other_layers.name, find_prediction(other_layers.weights)),
    )
    kohya_names = base_layers.kohya_names()
    wanted = {module: name for module, name in kohya_names.items() if text or module.startswith("unet.")}
    for model in (base_layers, other_layers):  # takes seconds, the rest takes minutes
        _refuse_nan(model)
    meter = _FitMeter()
    deltas: dict[str, Delta] = {}
    with disable_inference_mode():
        for done, module in enumerate(base_layers.sources, start=1):
            base_weight, change = base_layers.change_to(other_layers, module)
            delta = _nearest_delta(change, rank, conv_rank, tolerance) if module in wanted else None
            if delta is not None:
                deltas[wanted[module]] = delta
            meter.record(module, base_weight, change, delta, has_layer=module in kohya_names)
            if on_weight:
                on_weight(done, len(base_layers.sources))
        if not deltas:
            raise NoEffect(
                f"{other_layers.name} and {base_layers.name} do not differ in these layers: give two different models"
            )
        lora = Lora(_card(base, base_layers, other_layers, name), deltas)
    return lora, meter.report(base_layers.name, other_layers.name)


def _refuse_nan(model: ModelLayers) -> None:
    """Refuse a model with NaN or infinite values in a tensor."""
    for module, source in model.sources.items():
        if not bool(model.read(module).isfinite().all()):
            path = model.weights.path
            raise BadFile(
                f"{path.name if path else model.name} has NaN or infinite values in {source.key}: download it again, "
                "or use another model"
            )


def _nearest_delta(change: Tensor, rank: int | None, conv_rank: int | None, tolerance: float | None) -> Delta | None:
    is_conv = change.ndim == 4 and change.shape[2:].numel() > 1
    layer_rank = conv_rank if is_conv else rank
    return None if layer_rank == 0 else nearest_low_rank(change, layer_rank, tolerance)


@dataclass
class _FitMeter:
    """Sums up the squares of the changes and errors of all tensors, part by part."""

    sums: dict[str, Tensor] = field(
        default_factory=dict[str, Tensor]
    )  # (3,): squared error, change and left-out change
    ranks: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def record(self, module: str, base_weight: Tensor, change: Tensor, delta: Delta | None, *, has_layer: bool) -> None:
        residual = change if delta is None else change - delta.to(change.device).weight_delta(base_weight)
        squared_change = squared_norm(change)
        squares = torch.tensor(
            [squared_norm(residual), squared_change, 0.0 if has_layer else squared_change], dtype=torch.float64
        )
        for part in (part_of_module(module), WHOLE_MODEL):
            self.sums[part] = self.sums.get(part, torch.zeros(3, dtype=torch.float64)) + squares
            self.ranks.setdefault(part, []).extend([delta.rank or 0] if delta else [])

    def report(self, base: str, other: str) -> ExtractReport:
        rows = [self._part_fit(part) for part in (*MODEL_PARTS, WHOLE_MODEL) if part in self.sums]
        return ExtractReport(base=base, other=other, parts=tuple(rows))

    def _part_fit(self, part: str) -> PartFit:
        squared_error, squared_change, squared_left_out = map(float, self.sums[part])
        ranks = self.ranks[part]
        least_and_largest = (min(ranks), max(ranks)) if ranks else (0, 0)
        if not squared_change:
            return PartFit(part=part, layers=len(ranks), ranks=least_and_largest)
        return PartFit(
            part=part,
            layers=len(ranks),
            ranks=least_and_largest,
            missed=relative_error(squared_error, squared_change),
            left_out=relative_error(squared_left_out, squared_change),
        )


def _card(base: Base | StrPath, base_layers: ModelLayers, other_layers: ModelLayers, name: str) -> Card:
    if isinstance(base, Base):
        family, base_hash = base.family.name, base.hash
        prediction = base.family.unusual_prediction
    else:
        path = base_layers.weights.path
        assert path is not None
        family = inspect_file(path).card.family
        base_hash = Hashes.from_file(path).sha256[:10] if path.is_file() else ""
        prediction = _unusual_prediction(family, find_prediction(base_layers.weights))
    return Card(
        kind=Lora.kind,
        name=name or other_layers.name,
        family=family,
        base=base_layers.name,
        base_hash=base_hash,
        prediction=prediction,
        note=f"what {other_layers.name} has otherwise than {base_layers.name}",
    )


def _unusual_prediction(family_name: str, prediction: Prediction | None) -> Prediction | Literal[""]:
    family = FAMILIES.get(family_name)
    if family is None or prediction is None:
        return ""
    return replace(family, prediction=prediction).unusual_prediction
