"""The weights of a model by diffusers' names, layer by layer, read as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from velatura.base.base import Base
from velatura.formats.ldm_keys import unet_from_ldm
from velatura.formats.ldm_kinds import KINDS, kind_of
from velatura.formats.sources import Source
from velatura.merging.weights import Weights
from velatura.overlays.kohya import TEXT, UNET, canonical
from velatura.overlays.target import TOWERS
from velatura.tensors import StrPath, used

TABLES = ("token_embedding", "position_embedding")  # of words and places, which no product of a low rank stands for


@dataclass(frozen=True, eq=False)
class Parts:
    """Where a model's tensors are, by the part and diffusers' name: unet.conv_in.weight, text_encoder.encoder...."""

    weights: Weights
    kind: str
    sources: Mapping[str, Source]

    @classmethod
    def of(cls, thing: Base | StrPath) -> Self:
        """Look at a base, a checkpoint or a folder; nothing is read yet."""
        weights = Weights.of(thing)
        kind = kind_of(weights.name, set(weights))
        found = {f"unet.{name}": source for name, source in unet_from_ldm(weights).items()}
        for part, place in zip(TOWERS, KINDS[kind], strict=False):
            found |= {f"{part}.{name}": source for name, source in place.sources(weights).items()}
        return cls(weights, kind, found)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.weights.name

    def sketch(self, name: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        source = self.sources[name]
        return source.change(self.weights.sketch(source.key))

    def read(self, name: str) -> Tensor:
        """A tensor in float32."""
        source = self.sources[name]
        return used(self.weights, source.key, lambda there: source.change(there).float().clone())

    def layers(self, *, text: bool = True) -> dict[str, str]:
        """The names in kohya's files of all layers that are products, by the names of their weights."""
        found: dict[str, str] = {}
        for name in self.sources:
            part, _, path = name.partition(".")
            module = path.removesuffix(".weight")
            if module == path or self.sketch(name).ndim not in {2, 4} or module.endswith(TABLES):
                continue
            if part == "unet" or text:
                found[name] = self._prefix(part) + canonical(part, module).replace(".", "_")
        return found

    def _prefix(self, part: str) -> str:
        if part == "unet":
            return UNET
        return f"{TEXT}{TOWERS.index(part) + 1}_" if len(KINDS[self.kind]) > 1 else f"{TEXT}_"


def place_of(name: str) -> str:
    """Which part of a model a tensor is of, as reports have it."""
    if not name.startswith("unet."):
        return "text"
    if name.startswith("unet.mid_block."):
        return "UNet mid"
    before = ("unet.down_blocks.", "unet.conv_in.", "unet.time_embedding.", "unet.add_embedding.")
    return "UNet in" if name.startswith(before) else "UNet out"
