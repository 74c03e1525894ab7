"""Arguments by which overlays are made, read from texts and checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from velatura.errors import UnknownName
from velatura.training.plan import Share

# A test compares these with the tables that they are from, whose modules import torch
ACTIVATION_NAMES = (
    *("linear", "swish", "relu", "rrelu", "hardtanh", "relu6", "sigmoid", "hardsigmoid", "tanh", "silu", "mish"),
    *("hardswish", "elu", "celu", "selu", "gelu", "hardshrink", "leakyrelu", "logsigmoid", "softplus", "softshrink"),
    *("prelu", "softsign", "tanhshrink", "softmin", "softmax", "softmax2d", "logsoftmax"),
)
INIT_NAMES = ("normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")
ALGORITHM_NAMES = ("lora", "dora", "loha", "lokr", "locon", "ia3", "oft", "boft", "glora", "full", "norm")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _read_none(value: object) -> object:
    return None if value == "none" else value


def _split_or_none(value: object) -> object:
    return None if value == "none" else _split(value)


RankNumber = Annotated[int, Field(ge=1, le=4096)]
OptionalRank = Annotated[RankNumber | None, BeforeValidator(_read_none)]
OptionalAlpha = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(_read_none)]
LayerSizes = Annotated[
    tuple[Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)], ...],
    BeforeValidator(_split),
    Field(min_length=2, max_length=64, description="sizes of its layers, as 1,2,1"),
]
ContextWidths = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] | None,
    BeforeValidator(_split_or_none),
]
InitialText = Annotated[str, Field(max_length=1000, description="words whose vectors an embedding begins with")]


Targets = Annotated[
    Literal["context", "attention", "transformer", "linear", "conv"] | None, BeforeValidator(_read_none)
]


class OverlayArguments(BaseModel):
    """Arguments by which a new overlay is made; the defaults are those of `velatura train KIND`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HypernetArguments(OverlayArguments):
    """Arguments of `Hypernetwork.for_base`."""

    layers: LayerSizes = (1, 2, 1)
    activation: str = "relu"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: Share = 0.0
    last_layer_dropout: bool = True
    init: str = "normal"
    widths: ContextWidths = None

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[float, ...]) -> tuple[float, ...]:
        if layers[0] != 1 or layers[-1] != 1:
            raise ValueError("should begin and end with 1, as 1,2,1")
        return layers

    @field_validator("activation")
    @classmethod
    def _check_activation(cls, name: str) -> str:
        return _check_name("activation", name.lower(), ACTIVATION_NAMES)

    @field_validator("init")
    @classmethod
    def _check_init(cls, name: str) -> str:
        return _check_name("init", name, INIT_NAMES)


class LoraArguments(OverlayArguments):
    """Arguments of `Lora.for_base`."""

    rank: RankNumber = 16
    alpha: OptionalAlpha = None
    algorithm: str = "lora"
    targets: Targets = None
    conv_rank: OptionalRank = None
    conv_alpha: OptionalAlpha = None
    factor: Annotated[int, Field(ge=-1, le=4096)] = -1
    text: bool = False
    rank_stabilised: bool = False
    dropout: Share = 0.0
    rank_dropout: Share = 0.0
    module_dropout: Share = 0.0

    @field_validator("algorithm")
    @classmethod
    def _check_algorithm(cls, name: str) -> str:
        return _check_name("algorithm of a LoRA", name, ALGORITHM_NAMES)


class EmbeddingArguments(OverlayArguments):
    """Arguments of `Embedding.for_base`."""

    vectors: Annotated[int, Field(ge=1, le=75)] = 4
    initial: InitialText = "*"


class DifferenceArguments(OverlayArguments):
    """Arguments of `Difference.for_base`, which DreamBooth trains."""

    text: bool = False


ARGUMENTS: dict[str, type[OverlayArguments]] = {
    "embedding": EmbeddingArguments,
    "hypernet": HypernetArguments,
    "lora": LoraArguments,
    "dreambooth": DifferenceArguments,
}


def _check_name(kind: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise UnknownName.with_suggestions(kind, name[:40], known)
    return name
