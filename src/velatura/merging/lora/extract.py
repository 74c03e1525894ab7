"""A LoRA out of the difference of two models: what one has otherwise than the other, as far as low ranks go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.base.base import Base
from velatura.card import Card
from velatura.errors import BadOverlay, NoEffect, WrongBase
from velatura.formats.inspect.inspect import inspect_file
from velatura.library.hashes import Hashes
from velatura.merging.lora.model_layers import ModelLayers, model_part
from velatura.merging.lora.svd import nearest_low_rank
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora
from velatura.overlays.strength import disable_inference_mode
from velatura.tensors import StrPath

ExtractSource = Base | StrPath
OnLayer = Callable[[int, int], None]  # how many are done, and how many there are

DEFAULT_RANK = 32
WHOLE_MODEL = "whole"
MODEL_PARTS = ("text", "UNet in", "UNet mid", "UNet out")


class PartFit(BaseModel):
    """How near a LoRA comes to the difference of two models in one part of them, or in all.

    layers, ranks: of the LoRA, the least and the largest. missed: what is lost of the difference's size, 1 being all;
    left_out: how much of it lies in norms, biases and tables, where a LoRA changes nothing.
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
        low, high = self.ranks
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        line = f"{self.part:9}{self.layers} layers of {ranks}, {self.missed:.1%} of the difference missed"
        return f"{line}, {self.left_out:.1%} where a LoRA cannot be" if self.left_out >= 5e-4 else line


class ExtractReport(BaseModel):
    """How near a LoRA comes to what one model has otherwise than another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    other: str
    parts: tuple[PartFit, ...]

    @property
    def whole(self) -> PartFit:
        """The figures of all parts together."""
        return self.parts[-1]

    def __str__(self) -> str:
        return "\n".join([f"{self.other} less {self.base} as a LoRA", *(f"  {part}" for part in self.parts)])


@torch.no_grad()
def extract(
    base: ExtractSource,
    other: ExtractSource,
    rank: int | None = None,
    *,
    tolerance: float | None = None,
    conv_rank: int | None = None,
    text: bool = True,
    name: str = "",
    on_layer: OnLayer | None = None,
) -> Lora:
    """Turn what another model has otherwise than a base into a LoRA for that base; bases or files, read layer by layer.

    rank: of each layer, 32 by default; tolerance: the least rank of each layer that misses no more of its change, rank
    being the most; conv_rank: of convolutions larger than 1x1, rank if not given, none of them where it is 0.
    text: of the text towers too. See missed for how near it comes.
    """
    rank = DEFAULT_RANK if rank is None and tolerance is None else rank
    _check_ranks(rank, conv_rank, tolerance)
    base_layers, other_layers = ModelLayers.from_model(base), ModelLayers.from_model(other)
    kohya_names = base_layers.kohya_names(text=text)
    _check_same_structure(base_layers, other_layers)
    deltas: dict[str, Delta] = {}
    with disable_inference_mode():
        for done, (weight_name, kohya_name) in enumerate(kohya_names.items(), start=1):
            change = _weight_change(base_layers, other_layers, weight_name)
            is_conv = change.ndim == 4 and change.shape[2:].numel() > 1
            layer_rank = conv_rank if is_conv and conv_rank is not None else rank
            if layer_rank != 0 and (delta := nearest_low_rank(change, layer_rank, tolerance)):
                deltas[kohya_name] = delta
            if on_layer:
                on_layer(done, len(kohya_names))
        if not deltas:
            raise NoEffect(
                f"{other_layers.name} has all weights of {base_layers.name}: there is no difference to make a LoRA of"
            )
        return Lora(_card(base, base_layers, other_layers, name), deltas)


@torch.no_grad()
def measure_extraction(lora: Lora, base: ExtractSource, other: ExtractSource) -> ExtractReport:
    """Tell how near a LoRA on a base comes to another model, part by part."""
    base_layers, other_layers = ModelLayers.from_model(base), ModelLayers.from_model(other)
    _check_same_structure(base_layers, other_layers)
    kohya_names, deltas = base_layers.kohya_names(), lora.layers
    sums: dict[str, Tensor] = {}
    ranks: dict[str, list[int]] = {}
    for name in base_layers.sources:
        change, delta = _weight_change(base_layers, other_layers, name), deltas.get(kohya_names.get(name, ""))
        residual = change if delta is None else change - delta.to(change.device).weight_delta(base_layers.read(name))
        squares = torch.stack(
            [_squared_norm(residual), _squared_norm(change), _squared_norm(change) * (name not in kohya_names)]
        )
        for part in (model_part(name), WHOLE_MODEL):
            sums[part] = sums.get(part, torch.zeros(3, dtype=torch.float64)) + squares
            ranks.setdefault(part, []).extend([delta.rank or 0] if delta else [])
    rows = [_part_fit(part, ranks[part], sums[part]) for part in (*MODEL_PARTS, WHOLE_MODEL) if part in sums]
    return ExtractReport(base=base_layers.name, other=other_layers.name, parts=tuple(rows))


def _weight_change(base_layers: ModelLayers, other_layers: ModelLayers, name: str) -> Tensor:
    base_weight = base_layers.read(name)
    return other_layers.read(name).to(base_weight.device) - base_weight


def _part_fit(part: str, ranks: list[int], sums: Tensor) -> PartFit:
    squared_error, squared_change, squared_left_out = map(float, sums)
    fit = PartFit(part=part, layers=len(ranks), ranks=(min(ranks), max(ranks)) if ranks else (0, 0))
    if not squared_change:
        return fit
    return fit.model_copy(
        update={
            "missed": (squared_error / squared_change) ** 0.5,
            "left_out": (squared_left_out / squared_change) ** 0.5,
        }
    )


def _squared_norm(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum().cpu()


def _check_same_structure(base_layers: ModelLayers, other_layers: ModelLayers) -> None:
    """Refuse two models of different structure, by the first tensor that tells."""
    for name in base_layers.sources.keys() | other_layers.sources.keys():
        is_in_both = name in base_layers.sources and name in other_layers.sources
        if not is_in_both or base_layers.meta_tensor(name).shape != other_layers.meta_tensor(name).shape:
            raise WrongBase(
                f"{other_layers.name} and {base_layers.name} differ in {name}: give two models of one family"
            )


def _check_ranks(rank: int | None, conv_rank: int | None, tolerance: float | None) -> None:
    if (rank is not None and rank < 1) or (conv_rank is not None and conv_rank < 0):
        raise BadOverlay(f"a LoRA of rank {rank}, of convolutions {conv_rank}, cannot be: give 1 or more")
    if tolerance is not None and not 0 < tolerance < 1:
        raise BadOverlay(f"a tolerance of {tolerance:g} leaves nothing to choose: give one between 0 and 1")


def _card(base: ExtractSource, base_layers: ModelLayers, other_layers: ModelLayers, name: str) -> Card:
    if isinstance(base, Base):
        family, base_hash = base.family.name, base.hash
    else:
        path = base_layers.weights.path
        assert path is not None
        family = inspect_file(path).card.family
        base_hash = Hashes.from_file(path).sha256[:10] if path.is_file() else ""
    note = f"what {other_layers.name} has otherwise than {base_layers.name}"
    return Card(
        kind=Lora.kind,
        name=name or other_layers.name,
        family=family,
        base=base_layers.name,
        base_hash=base_hash,
        note=note,
    )
