"""What a LoRA is to be, before it is trained: its algorithm, its ranks, and which layers it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal, Self, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import nn

from velatura.errors import BadOverlay, UnknownName
from velatura.overlays.deltas import DELTAS
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.deltas.lokr import LoKr
from velatura.overlays.lora.kohya_names import UNET_PREFIX, kohya_names
from velatura.overlays.target import Target

LoraTargets = Literal["attention", "transformer", "linear", "conv"]
DropoutProbability = Annotated[float, Field(ge=0, lt=1)]

ALGORITHM_ALIASES = {"locon": "lora"}  # a LoRA that changes convolutions too
ATTENTION_LAYERS = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
TRANSFORMER_LAYERS = re.compile(r"\.attentions\.|\.encoder\.layers\.")
WITHOUT_INPUT_DROPOUT = frozenset({"ia3", "oft", "oft-diag", "boft"})  # they turn or scale what a layer makes


class LoraConfig(BaseModel):
    """What an untrained LoRA is built by.

    targets: "attention" is Q, K, V and what follows them; "transformer" all layers of the transformers, as kohya's
    trainer has it; "linear" every Linear of the model; "conv" all convolutions too. Each holds what the ones before it
    hold. conv_rank, conv_alpha: of convolutions larger than 1x1. factor: the size of a LoKr's smaller matrix, or -1 for
    the squarest. The dropouts are probabilities while training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: str = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    conv_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    conv_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    factor: Annotated[int, Field(ge=-1, le=4096)] = -1
    targets: LoraTargets = "attention"
    text: bool = False
    rank_stabilised: bool = False
    dropout: DropoutProbability = 0.0
    rank_dropout: DropoutProbability = 0.0
    module_dropout: DropoutProbability = 0.0

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Check the fields; raises BadOverlay, or UnknownName for an algorithm or targets that nobody knows."""
        for field, choices in (("algorithm", {*DELTAS, *ALGORITHM_ALIASES}), ("targets", get_args(LoraTargets))):
            if field in fields and fields[field] not in choices:
                raise UnknownName.with_suggestions(f"choice for a LoRA's {field}", str(fields[field])[:40], choices)
        try:
            config = cls.model_validate(fields)
        except ValidationError as error:
            first_error = error.errors()[0]
            raise BadOverlay(
                f"a LoRA's {first_error['loc'][0]} cannot be {first_error['input']}: {first_error['msg']}"
            ) from None
        if config.dropout and config.algorithm in WITHOUT_INPUT_DROPOUT:
            raise BadOverlay(f"{config.algorithm} reads nothing that could be dropped: leave out dropout")
        if config.factor != -1 and config.algorithm != "lokr":
            raise BadOverlay(f"{config.algorithm} has no smaller matrix: leave out factor, which is a lokr's")
        return config

    @classmethod
    def from_structure(cls, structure: Mapping[str, JsonValue]) -> Self | None:
        """What a card says, or None where it says nothing of it."""
        return cls.from_fields(structure) if structure else None

    def build_deltas(self, target: Target) -> dict[str, Delta]:
        """Untrained deltas for a target's layers, by the names that kohya's files have for those; raises BadOverlay."""
        names = kohya_names(target)
        deltas = {
            kohya_name: self.build_delta(cast("Layer", target.layer(name)))
            for kohya_name, name in names.items()
            if (self.text or kohya_name.startswith(UNET_PREFIX)) and self.is_target(name, target.layer(name))
        }
        if not deltas:
            raise BadOverlay(f"{target.name} has no layers of {self.targets} to change: choose other targets")
        return deltas

    def set_dropouts(self, deltas: Iterable[Delta]) -> None:
        """Tell deltas what they drop while training."""
        for delta in deltas:
            delta.dropout, delta.rank_dropout = self.dropout, self.rank_dropout
            delta.module_dropout = self.module_dropout

    def is_target(self, path: str, layer: nn.Module) -> bool:
        """Whether a layer is among those that are to change, by its path in its model."""
        if self.algorithm == "norm":
            return isinstance(layer, nn.GroupNorm | nn.LayerNorm)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return False
        if self.targets in {"linear", "conv"}:
            return self.targets == "conv" or isinstance(layer, nn.Linear)
        return bool((ATTENTION_LAYERS if self.targets == "attention" else TRANSFORMER_LAYERS).search(path))

    def build_delta(self, layer: Layer) -> Delta:
        """An untrained delta for a layer, which adds exactly nothing."""
        is_large_conv = isinstance(layer, nn.Conv2d) and math.prod(layer.kernel_size) > 1
        rank, alpha = (self.conv_rank, self.conv_alpha) if is_large_conv else (self.rank, self.alpha)
        # files say alpha over rank, whatever it was to be over: as LyCORIS does
        stored_alpha = alpha * math.sqrt(rank) if self.rank_stabilised else alpha
        if self.algorithm == "lokr":
            return LoKr.for_layer(layer, rank=rank, alpha=stored_alpha, factor=self.factor)
        return DELTAS[ALGORITHM_ALIASES.get(self.algorithm, self.algorithm)].for_layer(
            layer, rank=rank, alpha=stored_alpha
        )


def check_conv_options(algorithm: str, targets: str, conv_options: Mapping[str, object]) -> None:
    """Refuse what is asked of convolutions where none of them changes; of_convolutions: None for what is not asked."""
    if targets == "conv":
        return
    reasons = [f"{name} says" for name, value in conv_options.items() if value is not None]
    if algorithm == "locon":
        reasons.insert(0, "locon stands for")
    if reasons:
        raise BadOverlay(
            f"{reasons[0]} what becomes of convolutions, and {targets} changes none that is larger than 1x1: "
            "give targets conv, or leave it out"
        )


@contextmanager
def seed_rng(seed: int | None) -> Generator[None]:
    """Draw by a seed, and leave torch's own chance as it was; without one draw by that."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):  # pyright: ignore[reportUnknownMemberType]
        if seed is not None:
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
