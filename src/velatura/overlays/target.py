"""What overlays are laid over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

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
    """The parts of a Base, of a diffusers pipeline, or a UNet alone, and in which of its blocks an overlay may act.

    towers: the text models, two in an SDXL. group: those it acts side by side with; changes: what the overlay laid
    there; listener: hears what it does; words: the encoder of a Base, which knows its words.
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
        """Find the parts of anything that has a UNet, or is one."""
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
                f"a {type(model).__name__} has no UNet to lay an overlay over: "
                "attach to a velatura base, a diffusers pipeline or its UNet"
            )
        unet = getattr(unet, "_orig_mod", unet)  # what torch.compile wraps
        encoders = [getattr(model, name, None) for name in TEXT_ENCODER_NAMES]
        text_encoders = tuple(
            getattr(encoder, "_orig_mod", encoder) for encoder in encoders if isinstance(encoder, nn.Module)
        )
        return cls(type(model).__name__, unet, text_encoders, blocks, group)

    @property
    def device(self) -> torch.device:
        """Where the UNet computes: where it lives, or where offloading brings it for that."""
        devices = (
            getattr(getattr(module, "_hf_hook", None), "execution_device", None) for module in self.unet.modules()
        )
        device = next((candidate for candidate in devices if candidate is not None), None)
        return next(self.unet.parameters()).device if device is None else torch.device(device)

    def attention_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The attention layers that the overlay may touch, with their names."""
        return attention_layers(self.unet, self.blocks)

    def layer(self, name: str) -> nn.Module:
        """A layer by the name that it has among parts, such as unet.mid_block.resnets.0.conv1."""
        part, _, path = name.partition(".")
        return self.parts[part].get_submodule(path)

    @property
    def combine_weight(self) -> float:
        """By what changes that add up are multiplied: those that act side by side may be averaged."""
        return 1 / self.group.size if self.group is not None and self.group.mode == "average" else 1.0

    def is_reachable(self, name: str) -> bool:
        """Whether the overlay may touch a layer of that name: in the UNet only within its blocks."""
        prefixes = tuple(f"unet.{BLOCK_PREFIXES[block]}" for block in self.blocks)
        return self.blocks == UNET_BLOCKS or not name.startswith("unet.") or name.startswith(prefixes)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The UNet and the text towers, by the names that diffusers' pipelines have for them."""
        return {"unet": self.unet} | dict(zip(TEXT_ENCODER_NAMES, self.text_encoders, strict=False))
