"""What a hypernetwork is built of: the layer structure that its file declares, as A1111 reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.modules import activation as torchs

from velatura.errors import BadOverlay, UnknownName


def _built(name: str) -> Callable[[], nn.Module]:
    """What builds one of torch's activations; the softmax family needs to be told along which axis it runs.

    Over contexts (batch, tokens, width) that is the batch, torch's implicit choice there.
    """
    made = cast("Callable[..., nn.Module]", getattr(nn, name))
    return partial(made, dim=_SOFTMAX_DIMS[name]) if name in _SOFTMAX_DIMS else made


_SOFTMAX_DIMS = {"Softmax": 0, "Softmin": 0, "LogSoftmax": 0}  # Softmax2d has its own, -3, the batch again
_UNUSABLE = {"Threshold", "MultiheadAttention", "GLU"}  # the first two need arguments, the last halves the width

# A1111's names: torch's own classes in lower case, but for linear, which is none, and swish, which is not SiLU.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "swish": nn.Hardswish,
    **{name.lower(): _built(name) for name in torchs.__all__ if name not in _UNUSABLE},
}

# A1111's normal starts close to the identity; torch's gain for kaiming is the same for relu and A1111's leakyrelu.
INITS: dict[str, Callable[..., Tensor]] = {
    "normal": partial(nn.init.normal_, std=0.01),
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
}

MOST_LAYERS = 64
WIDEST = 2**17  # features of one layer: a thousandfold the narrowest context, 64 times the widest

Width = Annotated[int, Field(ge=1, le=WIDEST)]
Number = TypeVar("Number", int, float)
Numbers = Annotated[tuple[Number, ...], Field(strict=False)]  # JSON knows lists only


class Structure(BaseModel):
    """How the networks of a hypernetwork are built: one pair for each width, all alike but for their size.

    layers are multiples of the width, from 1 to 1; dropout has an entry for each of them, the first unused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    widths: Numbers[Width] = Field(min_length=1, max_length=MOST_LAYERS)
    layers: Numbers[float] = Field(default=(1, 2, 1), min_length=2, max_length=MOST_LAYERS)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: Numbers[float] = ()
    init: str = "normal"

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Self:
        """Check the fields of a structure; what is wrong is one BadOverlay."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "structure"
            raise BadOverlay(f"{place} is {_shown(first['input'])}: {first['msg'].lower()}") from None

    @field_validator("layers")
    @classmethod
    def _ends_as_it_starts(cls, layers: tuple[float, ...]) -> tuple[float, ...]:
        if layers[0] != 1 or layers[-1] != 1:
            raise BadOverlay(f"layers {_listed(layers)} must start and end with 1, so that the width stays what it was")
        if not all(math.isfinite(each) and each > 0 for each in layers):
            raise BadOverlay(f"layers {_listed(layers)} must be positive multiples of the width")
        return layers

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name.lower() not in ACTIVATIONS:
            raise UnknownName.among("activation", name[:40], ACTIVATIONS)
        return name.lower()

    @field_validator("init")
    @classmethod
    def _known_init(cls, name: str) -> str:
        if name not in INITS:
            raise UnknownName.among("init", name[:40], INITS)
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.widths)) < len(self.widths):
            raise BadOverlay(f"widths {_listed(self.widths)} name one twice: give each once")
        largest = max(self.widths) * max(self.layers)
        if largest > WIDEST:
            raise BadOverlay(
                f"layers {_listed(self.layers)} would have up to {largest:g} features: {WIDEST} is the most"
            )
        if self.dropout and len(self.dropout) != len(self.layers):
            counts = f"{len(self.dropout)} entries, layers {len(self.layers)}"
            raise BadOverlay(f"dropout has {counts}: give one for each")
        if not all(0 <= each < 1 for each in self.dropout):
            raise BadOverlay(f"dropout {_listed(self.dropout)} must be probabilities, 0 or more and below 1")
        return self

    @property
    def mixes_rows(self) -> bool:
        """Whether its activation is of the softmax family, which runs along the batch."""
        applied = len(self.layers) > 2 or self.activate_output
        return applied and self.activation in {*map(str.lower, _SOFTMAX_DIMS), "softmax2d"}

    @property
    def outline(self) -> str:
        """The structure in a few words: 320,640,768,1280 · 1,2,1 mish."""
        extras = [
            "output activated" if self.activate_output and self.activation != "linear" else "",
            "layer norm" if self.layer_norm else "",
            f"dropout {_listed(self.dropout)}" if any(self.dropout) else "",
        ]
        layers = f"{_listed(self.layers)} {self.activation}"
        return " · ".join(filter(None, (_listed(sorted(self.widths)), layers, *extras)))

    def network(self, width: int) -> nn.Sequential:
        """Build the layers for one width; their indices are A1111's, so its state dicts fit."""
        return nn.Sequential(*self._network(width))

    def _network(self, width: int) -> Iterator[nn.Module]:
        sizes = [int(width * each) for each in self.layers]
        for index, (before, after) in enumerate(pairwise(sizes), start=1):
            yield nn.Linear(before, after)
            hidden = index < len(sizes) - 1
            if self.activation != "linear" and (hidden or self.activate_output):
                yield ACTIVATIONS[self.activation]()
            if self.layer_norm:
                yield nn.LayerNorm(after)
            if self.dropout and self.dropout[index] > 0:
                yield nn.Dropout(self.dropout[index])


def _listed(numbers: Sequence[float]) -> str:
    shown = [f"{each:g}" for each in numbers[:12]]
    return ",".join(shown) + (",..." if len(numbers) > len(shown) else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
