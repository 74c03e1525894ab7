"""Configuration of untrained LoRAs: algorithm, ranks, dropouts and the layers that they change."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal, Self, cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import nn

from velatura.errors import BadOverlay, UnknownName, explain_validation_error
from velatura.overlays.deltas import DELTAS
from velatura.overlays.deltas.delta import Delta, Layer
from velatura.overlays.deltas.lokr import LoKr
from velatura.overlays.lora.kohya_names import UNET_PREFIX, kohya_names
from velatura.overlays.target import Target

LoraTargets = Literal["context", "attention", "transformer", "linear", "conv"]
DropoutProbability = Annotated[float, Field(ge=0, lt=1)]

ALGORITHM_ALIASES = {"locon": "lora"}  # LoCon is a LoRA that changes convolutions too
ATTENTION_LAYERS = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
CONTEXT_LAYERS = re.compile(r"\.attn2\.(to_k|to_v)$")
TRANSFORMER_LAYERS = re.compile(r"\.attentions\.|\.encoder\.layers\.")
LAYERS_BY_TARGETS = {"context": CONTEXT_LAYERS, "attention": ATTENTION_LAYERS, "transformer": TRANSFORMER_LAYERS}
# What a LoRA changes unless it is said: on the tiny base all layers, which show a robot and neon twice as often
# (docs/subjects.md). On other families what kohya's trainer changes: on the tiny base it shows neon more than twice as
# often as attention alone, which is not measured on them, and a LoRA on all layers would be 2.5 times as large
DEFAULT_TARGETS: LoraTargets = "transformer"
DEFAULT_TARGETS_BY_FAMILY: dict[str, LoraTargets] = {"tiny": "conv"}
WITHOUT_INPUT_DROPOUT = frozenset({"ia3", "oft", "oft-diag", "boft"})  # they rotate or scale the output of a layer


class LoraConfig(BaseModel):
    """Configuration of an untrained LoRA.

    Attributes:
        algorithm: Key of DELTAS, or "locon".
        rank, alpha: Rank and alpha of Linear layers and 1x1 convolutions.
        conv_rank, conv_alpha: Rank and alpha of larger convolutions.
        factor: Size of a LoKr's smaller matrix; -1 for two matrices of similar size.
        targets: "context": K and V of cross-attention, which read the text (Kumari et al. 2023, Custom Diffusion).
            "attention": Q, K, V and output projections. "transformer": all layers of the transformers, like
            kohya's trainer. "linear": all Linear layers. "conv": all convolutions too.
        text: Change the text encoders too.
        rank_stabilised: Divide alpha by the square root of the rank (rsLoRA).
        dropout: Probability of dropping an input feature in training.
        rank_dropout: Probability of dropping a rank in training.
        module_dropout: Probability of leaving out a whole layer's delta in a training step.
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
        """Check the fields; raises BadOverlay, or UnknownName for an unknown algorithm or unknown targets."""
        for field, choices in (("algorithm", {*DELTAS, *ALGORITHM_ALIASES}), ("targets", get_args(LoraTargets))):
            if field in fields and fields[field] not in choices:
                raise UnknownName.with_suggestions(f"choice for a LoRA's {field}", str(fields[field])[:40], choices)
        try:
            config = cls.model_validate(fields)
        except ValidationError as error:
            descriptions = dict.fromkeys(cls.model_fields)
            raise BadOverlay(explain_validation_error(error, "LoRA", descriptions)) from None
        if config.dropout and config.algorithm in WITHOUT_INPUT_DROPOUT:
            raise BadOverlay(f"{config.algorithm} does not read the input of a layer: leave out dropout")
        if config.factor != -1 and config.algorithm != "lokr":
            raise BadOverlay(f"factor belongs to lokr, and the algorithm is {config.algorithm}: leave out factor")
        return config

    @classmethod
    def from_structure(cls, structure: Mapping[str, JsonValue]) -> Self | None:
        """Read the configuration from a card's structure; return None if the structure is empty."""
        return cls.from_fields(structure) if structure else None

    def build_deltas(self, target: Target) -> dict[str, Delta]:
        """Build untrained deltas for a target's layers, by kohya's names; raises BadOverlay without any layer."""
        names = kohya_names(target)
        deltas = {
            kohya_name: self.build_delta(cast("Layer", target.layer(name)))
            for kohya_name, name in names.items()
            if (self.text or kohya_name.startswith(UNET_PREFIX)) and self.is_target(name, target.layer(name))
        }
        if not deltas:
            raise BadOverlay(f"{target.name} has no layers for targets {self.targets!r}: choose other targets")
        return deltas

    def is_target(self, path: str, layer: nn.Module) -> bool:
        """Return True if the LoRA changes a layer of this type and this path."""
        if self.algorithm == "norm":
            return isinstance(layer, nn.GroupNorm | nn.LayerNorm)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return False
        if self.targets in {"linear", "conv"}:
            return self.targets == "conv" or isinstance(layer, nn.Linear)
        return bool(LAYERS_BY_TARGETS[self.targets].search(path))

    def build_delta(self, layer: Layer) -> Delta:
        """Build an untrained delta for a layer; it changes exactly nothing yet."""
        is_large_conv = isinstance(layer, nn.Conv2d) and math.prod(layer.kernel_size) > 1
        rank, alpha = (self.conv_rank, self.conv_alpha) if is_large_conv else (self.rank, self.alpha)
        # readers divide alpha by the rank, so a rank-stabilised alpha is stored multiplied, as in LyCORIS
        stored_alpha = alpha * math.sqrt(rank) if self.rank_stabilised else alpha
        if self.algorithm == "lokr":
            return LoKr.for_layer(layer, rank=rank, alpha=stored_alpha, factor=self.factor)
        return DELTAS[ALGORITHM_ALIASES.get(self.algorithm, self.algorithm)].for_layer(
            layer, rank=rank, alpha=stored_alpha
        )


def check_conv_options(algorithm: str, targets: str, conv_options: Mapping[str, object]) -> None:
    """Refuse options of convolutions if the targets have no convolutions larger than 1x1.

    Args:
        algorithm: The algorithm; "locon" asks for convolutions too.
        targets: The targets.
        conv_options: Options by name; None for those that were not given.
    """
    if targets == "conv":
        return
    names = [name for name, value in conv_options.items() if value is not None]
    if algorithm == "locon":
        names.insert(0, "locon")
    if names:
        raise BadOverlay(
            f"{names[0]} is for convolutions, and targets {targets} include none that is larger than 1x1: "
            "give targets conv, or leave it out"
        )


@contextmanager
def seed_rng(seed: int | None) -> Generator[None]:
    """Draw random numbers by a seed, and restore torch's global generator; without a seed use the global generator."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):  # pyright: ignore[reportUnknownMemberType]
        if seed is not None:
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
