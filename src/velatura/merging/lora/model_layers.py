"""Read the weights of a model by diffusers' names, layer by layer, when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from velatura.base.image_condition import LATENT_CHANNELS
from velatura.errors import WrongBase
from velatura.formats.checkpoints.ldm_families import TEXT_ENCODER_LAYOUTS, detect_family
from velatura.formats.checkpoints.ldm_keys import unet_from_ldm
from velatura.formats.checkpoints.tensor_sources import TensorSource
from velatura.merging.checkpoints.weights import ModelSource, ModelWeights
from velatura.overlays.deltas.first_channels import FIRST_CONVOLUTION, check_input_channels, has_extra_channels
from velatura.overlays.lora.kohya_names import TEXT_PREFIX, UNET_PREFIX, canonical_path
from velatura.overlays.target import TEXT_ENCODER_NAMES
from velatura.tensors import apply_to

EMBEDDING_TABLES = ("token_embedding", "position_embedding")  # lookup tables, which a LoRA does not change


@dataclass(frozen=True, eq=False)
class ModelLayers:
    """Tensors of a model by part and diffusers' name: unet.conv_in.weight, text_encoder.encoder....

    Attributes:
        weights: The model's weights by checkpoint key.
        family: SD1, SD2 or SDXL, by the model's keys.
        sources: The key of each tensor in `weights`, and how it is converted to diffusers' layout.
    """

    weights: ModelWeights
    family: str
    sources: Mapping[str, TensorSource]

    @classmethod
    def from_model(cls, model: ModelSource) -> Self:
        """Open a base, a checkpoint or a diffusers folder, without reading tensors of a file."""
        weights = ModelWeights.from_model(model)
        family = detect_family(weights.name, set(weights))
        sources = {f"unet.{name}": source for name, source in unet_from_ldm(weights).items()}
        for part, layout in zip(TEXT_ENCODER_NAMES, TEXT_ENCODER_LAYOUTS[family], strict=False):
            sources |= {f"{part}.{name}": source for name, source in layout.sources(weights).items()}
        return cls(weights, family, sources)

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.weights.name

    def meta_tensor(self, name: str) -> Tensor:
        """Return the shape and precision of a tensor, on the meta device."""
        source = self.sources[name]
        return source.transform(self.weights.meta_tensor(source.key))

    def read(self, name: str) -> Tensor:
        """Read a tensor, in float32."""
        source = self.sources[name]
        return apply_to(self.weights, source.key, lambda tensor: source.transform(tensor).float().clone())

    def kohya_names(self) -> dict[str, str]:
        """Return the names in kohya's files of all linear and convolution layers, by the names of their weights."""
        names: dict[str, str] = {}
        for name in self.sources:
            part, _, path = name.partition(".")
            module = path.removesuffix(".weight")
            if module == path or self.meta_tensor(name).ndim not in {2, 4} or module.endswith(EMBEDDING_TABLES):
                continue
            names[name] = self._kohya_prefix(part) + canonical_path(part, module).replace(".", "_")
        return names

    def check_same_structure(self, other: ModelLayers) -> None:
        """Refuse another model of a different structure; raises WrongBase that names the first tensor that differs.

        Warns if this model is for inpainting or pix2pix and the other one is not; see `change_to`.
        """
        for name in sorted(self.sources.keys() | other.sources.keys()):
            if name not in self.sources or name not in other.sources:
                raise WrongBase(f"{other.name} and {self.name} differ in {name}: give two models of one family")
            ours, theirs = self.meta_tensor(name).shape, other.meta_tensor(name).shape
            if name == f"{FIRST_CONVOLUTION}.weight":
                check_input_channels(self.name, ours, other.name, theirs)
            if ours != theirs and not has_extra_channels(ours, theirs):
                raise WrongBase(f"{other.name} and {self.name} differ in {name}: give two models of one family")

    def change_to(self, other: ModelLayers, name: str) -> tuple[Tensor, Tensor]:
        """Return a tensor, and what another model of the same structure has there minus this one.

        Of a first convolution that reads more than latents, only the channels of the latents, if the other model reads
        nothing else.
        """
        ours, theirs = self.read(name), other.read(name)
        if has_extra_channels(ours.shape, theirs.shape):
            ours = ours[:, :LATENT_CHANNELS]
        return ours, theirs.to(ours.device) - ours

    def _kohya_prefix(self, part: str) -> str:
        if part == "unet":
            return UNET_PREFIX
        if len(TEXT_ENCODER_LAYOUTS[self.family]) == 1:
            return f"{TEXT_PREFIX}_"
        return f"{TEXT_PREFIX}{TEXT_ENCODER_NAMES.index(part) + 1}_"
