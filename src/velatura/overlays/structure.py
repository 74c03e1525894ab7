"""Layer structure of hypernetworks, as their files declare it and as A1111 reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

from velatura.errors import BadOverlay, UnknownName, explain_validation_error, quantity


def _activation_factory(name: str) -> Callable[[], nn.Module]:
    """Return what builds one of torch's activations.

    The softmax family gets its axis: for contexts (batch, tokens, width) torch's implicit choice is the batch.
    """
    activation_class = cast("Callable[..., nn.Module]", getattr(nn, name))
    return partial(activation_class, dim=_SOFTMAX_DIMS[name]) if name in _SOFTMAX_DIMS else activation_class


_SOFTMAX_DIMS = {"Softmax": 0, "Softmin": 0, "LogSoftmax": 0}  # Softmax2d always uses -3, which is the batch too
# The first two need arguments, the last halves the width
_UNSUPPORTED_ACTIVATIONS = {"Threshold", "MultiheadAttention", "GLU"}

# A1111's names: torch's class names in lower case, except linear (no activation) and swish (Hardswish, not SiLU).
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "swish": nn.Hardswish,
    **{
        name.lower(): _activation_factory(name)
        for name in torch_activations.__all__
        if name not in _UNSUPPORTED_ACTIVATIONS
    },
}

# A1111's normal starts close to the identity; torch's gain for kaiming is the same for relu and A1111's leakyrelu.
WEIGHT_INITS: dict[str, Callable[..., Tensor]] = {
    "normal": partial(nn.init.normal_, std=0.01),
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
}

MAX_LAYERS = 64
MAX_WIDTH = 2**17  # features of one layer: a thousandfold the narrowest context, 64 times the widest

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
NumberT = TypeVar("NumberT", int, float)
Numbers = Annotated[tuple[NumberT, ...], Field(strict=False)]  # JSON has lists, and no tuples


class HypernetworkStructure(BaseModel):
    """Structure of the networks of a hypernetwork: one pair for each width, built alike.

    Attributes:
        widths: Context widths that it changes, in features.
        layers: Sizes of the layers as multiples of the width; the first and the last are 1.
        activation: Key of ACTIVATIONS.
        layer_norm: Adds a LayerNorm after each Linear layer.
        activate_output: Applies the activation after the last Linear layer too.
        dropout: Empty, or one probability for each entry of `layers`; the first is not used.
        init: Key of WEIGHT_INITS, for new weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    widths: Numbers[Width] = Field(min_length=1, max_length=MAX_LAYERS)
    layers: Numbers[float] = Field(default=(1, 2, 1), min_length=2, max_length=MAX_LAYERS)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: Numbers[float] = ()
    init: str = "normal"

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Check the fields of a structure; raises BadOverlay, or UnknownName for an activation or an init."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            descriptions = dict.fromkeys(cls.model_fields)
            raise BadOverlay(explain_validation_error(error, "hypernetwork", descriptions)) from None

    @field_validator("widths")
    @classmethod
    def _check_widths(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(widths)) < len(widths):
            raise BadOverlay(f"widths {_join_with_commas(widths)} hold a width twice: give each width once")
        return widths

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[float, ...]) -> tuple[float, ...]:
        if layers[0] != 1 or layers[-1] != 1:
            raise BadOverlay(
                f"layers {_join_with_commas(layers)} must start and end with 1, so that the width stays the same"
            )
        if not all(math.isfinite(multiple) and multiple > 0 for multiple in layers):
            raise BadOverlay(f"layers {_join_with_commas(layers)} must be positive multiples of the width")
        return layers

    @field_validator("dropout")
    @classmethod
    def _check_dropout(cls, dropout: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= probability < 1 for probability in dropout):
            raise BadOverlay(f"dropout {_join_with_commas(dropout)} must be probabilities, 0 or more and below 1")
        return dropout

    @field_validator("activation")
    @classmethod
    def _check_activation(cls, name: str) -> str:
        if name.lower() not in ACTIVATIONS:
            raise UnknownName.with_suggestions("activation", name[:40], ACTIVATIONS)
        return name.lower()

    @field_validator("init")
    @classmethod
    def _check_init(cls, name: str) -> str:
        if name not in WEIGHT_INITS:
            raise UnknownName.with_suggestions("init", name[:40], WEIGHT_INITS)
        return name

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        largest = max(self.widths) * max(self.layers)
        if largest > MAX_WIDTH:
            raise BadOverlay(
                f"layers {_join_with_commas(self.layers)} would have up to {largest:g} features: "
                f"{MAX_WIDTH} is the most"
            )
        if self.dropout and len(self.dropout) != len(self.layers):
            raise BadOverlay(
                f"dropout has {quantity(len(self.dropout), 'entry', 'entries')}, layers {len(self.layers)}: give one "
                "for each layer"
            )
        return self

    @property
    def is_batch_dependent(self) -> bool:
        """Return True if the activation is of the softmax family, which runs along the batch."""
        has_activation = len(self.layers) > 2 or self.activate_output
        return has_activation and self.activation in {*map(str.lower, _SOFTMAX_DIMS), "softmax2d"}

    @property
    def outline(self) -> str:
        """Return the structure in a few words: 320,640,768,1280 · 1,2,1 mish."""
        extras = [
            "output activated" if self.activate_output and self.activation != "linear" else "",
            "layer norm" if self.layer_norm else "",
            f"dropout {_join_with_commas(self.dropout)}" if any(self.dropout) else "",
        ]
        layers = f"{_join_with_commas(self.layers)} {self.activation}"
        return " · ".join(filter(None, (_join_with_commas(sorted(self.widths)), layers, *extras)))

    def build_network(self, width: int) -> nn.Sequential:
        """Build the layers for one width; they have A1111's indices, so that its state dicts fit."""
        return nn.Sequential(*self._build_layers(width))

    def _build_layers(self, width: int) -> Iterator[nn.Module]:
        sizes = [int(width * multiple) for multiple in self.layers]
        for index, (in_features, out_features) in enumerate(pairwise(sizes), start=1):
            yield nn.Linear(in_features, out_features)
            is_hidden = index < len(sizes) - 1
            if self.activation != "linear" and (is_hidden or self.activate_output):
                yield ACTIVATIONS[self.activation]()
            if self.layer_norm:
                yield nn.LayerNorm(out_features)
            if self.dropout and self.dropout[index] > 0:
                yield nn.Dropout(self.dropout[index])


def _join_with_commas(numbers: Sequence[float]) -> str:
    texts = [f"{number:g}" for number in numbers[:12]]
    return ",".join(texts) + (",..." if len(numbers) > len(texts) else "")
