"""Model to which overlays are attached: a Base, a diffusers pipeline or a UNet, seen the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from velatura.arguments import describe_value
from velatura.base.base import Base
from velatura.base.text_encoder import TextEncoder
from velatura.errors import UnsupportedBase
from velatura.overlays.attention_layers import BLOCK_PREFIXES, attention_layers
from velatura.overlays.effect import EffectMeter
from velatura.overlays.hooks.context_hooks import CachingChange, CombineGroup
from velatura.prompts.strengths import UNET_BLOCKS, UNetBlock

TEXT_ENCODER_NAMES = ("text_encoder", "text_encoder_2")  # as diffusers' pipelines call them


@dataclass(frozen=True)
class Target:
    """Parts of a Base, of a diffusers pipeline or of a UNet alone, for one overlay that is being attached.

    Attributes:
        name: Name of the model in messages.
        unet: The UNet, unwrapped from torch.compile.
        text_encoders: CLIP text models; an SDXL has two, a bare UNet none.
        blocks: Blocks of the UNet in which the overlay may act.
        group: Overlays with which it acts side by side, or None.
        changes: Filled while hooks are installed: all changes whose caches can be cleared.
        meter: Measures the effect of the overlay.
        text: Text encoder of a Base, which tokenises prompts; None for other models.
    """

    name: str
    unet: nn.Module
    text_encoders: tuple[nn.Module, ...] = ()
    blocks: tuple[UNetBlock, ...] = UNET_BLOCKS
    group: CombineGroup | None = None
    changes: list[CachingChange] = field(default_factory=list["CachingChange"])
    meter: EffectMeter = field(default_factory=EffectMeter)
    text: TextEncoder | None = None

    @classmethod
    def from_model(
        cls, model: object, blocks: tuple[UNetBlock, ...] = UNET_BLOCKS, group: CombineGroup | None = None
    ) -> Self:
        """Find the parts of a model that has a UNet or is one; raises UnsupportedBase for anything else."""
        if isinstance(model, Base):
            return cls(
                model.name,
                model.unet,
                tuple(encoder.model for encoder in model.text.encoders),
                blocks,
                group,
                text=model.text,
            )
        unet: Any = getattr(model, "unet", model)
        if not isinstance(unet, nn.Module):
            raise UnsupportedBase(
                f"{describe_value(model)} has no UNet, so no overlay can be attached to it: "
                "attach to a velatura base (velatura.open_base(PATH)), a diffusers pipeline or its UNet"
            )
        unet = getattr(unet, "_orig_mod", unet)  # torch.compile's wrapper
        encoders = [getattr(model, name, None) for name in TEXT_ENCODER_NAMES]
        text_encoders = tuple(
            getattr(encoder, "_orig_mod", encoder) for encoder in encoders if isinstance(encoder, nn.Module)
        )
        return cls(type(model).__name__, unet, text_encoders, blocks, group)

    @property
    def device(self) -> torch.device:
        """Return the device on which the UNet computes; with offloading that is not where its weights are kept."""
        devices = (
            getattr(getattr(module, "_hf_hook", None), "execution_device", None) for module in self.unet.modules()
        )
        device = next((candidate for candidate in devices if candidate is not None), None)
        return next(self.unet.parameters()).device if device is None else torch.device(device)

    def attention_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the attention layers that the overlay may change, with their names."""
        return attention_layers(self.unet, self.blocks)

    def layer(self, name: str) -> nn.Module:
        """Return a layer by part and path, such as unet.mid_block.resnets.0.conv1."""
        part, _, path = name.partition(".")
        return self.parts[part].get_submodule(path)

    @property
    def combine_weight(self) -> float:
        """Return the factor of changes that add up: 1 / n for n overlays that are averaged, else 1."""
        return 1 / self.group.size if self.group is not None and self.group.mode == "average" else 1.0

    def is_reachable(self, name: str) -> bool:
        """Return True if the overlay may change the layer of this name: in the UNet only layers of its blocks."""
        prefixes = tuple(f"unet.{BLOCK_PREFIXES[block]}" for block in self.blocks)
        return self.blocks == UNET_BLOCKS or not name.startswith("unet.") or name.startswith(prefixes)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the UNet and the text encoders by their names in diffusers' pipelines."""
        return {"unet": self.unet} | dict(zip(TEXT_ENCODER_NAMES, self.text_encoders, strict=False))
