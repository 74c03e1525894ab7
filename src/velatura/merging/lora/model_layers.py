"""The weights of a model by diffusers' names, layer by layer, read as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from velatura.base.base import Base
from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS, detect_family
from velatura.formats.checkpoints.ldm_keys import unet_from_ldm
from velatura.formats.checkpoints.tensor_sources import TensorSource
from velatura.merging.checkpoints.weights import ModelWeights
from velatura.overlays.lora.kohya_names import TEXT_PREFIX, UNET_PREFIX, canonical_path
from velatura.overlays.target import TEXT_ENCODER_NAMES
from velatura.tensors import StrPath, apply_to

EMBEDDING_TABLES = (
    "token_embedding",
    "position_embedding",
)  # of words and places, which no product of a low rank stands for


@dataclass(frozen=True, eq=False)
class ModelLayers:
    """Where a model's tensors are, by the part and diffusers' name: unet.conv_in.weight, text_encoder.encoder...."""

    weights: ModelWeights
    kind: str
    sources: Mapping[str, TensorSource]

    @classmethod
    def from_model(cls, model: Base | StrPath) -> Self:
        """Look at a base, a checkpoint or a folder; nothing is read yet."""
        weights = ModelWeights.from_model(model)
        kind = detect_family(weights.name, set(weights))
        sources = {f"unet.{name}": source for name, source in unet_from_ldm(weights).items()}
        for part, tower in zip(TEXT_ENCODER_NAMES, TEXT_ENCODER_LAYOUTS[kind], strict=False):
            sources |= {f"{part}.{name}": source for name, source in tower.sources(weights).items()}
        return cls(weights, kind, sources)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.weights.name

    def meta_tensor(self, name: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        source = self.sources[name]
        return source.transform(self.weights.meta_tensor(source.key))

    def read(self, name: str) -> Tensor:
        """A tensor in float32."""
        source = self.sources[name]
        return apply_to(self.weights, source.key, lambda tensor: source.transform(tensor).float().clone())

    def kohya_names(self, *, text: bool = True) -> dict[str, str]:
        """The names in kohya's files of all layers that are products, by the names of their weights."""
        names: dict[str, str] = {}
        for name in self.sources:
            part, _, path = name.partition(".")
            module = path.removesuffix(".weight")
            if module == path or self.meta_tensor(name).ndim not in {2, 4} or module.endswith(EMBEDDING_TABLES):
                continue
            if part == "unet" or text:
                names[name] = self._kohya_prefix(part) + canonical_path(part, module).replace(".", "_")
        return names

    def _kohya_prefix(self, part: str) -> str:
        if part == "unet":
            return UNET_PREFIX
        return (
            f"{TEXT_PREFIX}{TEXT_ENCODER_NAMES.index(part) + 1}_"
            if len(TEXT_ENCODER_LAYOUTS[self.kind]) > 1
            else f"{TEXT_PREFIX}_"
        )


def model_part(name: str) -> str:
    """Which part of a model a tensor is of, as reports have it."""
    if not name.startswith("unet."):
        return "text"
    if name.startswith("unet.mid_block."):
        return "UNet mid"
    input_prefixes = ("unet.down_blocks.", "unet.conv_in.", "unet.time_embedding.", "unet.add_embedding.")
    return "UNet in" if name.startswith(input_prefixes) else "UNet out"
