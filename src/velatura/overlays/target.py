"""What overlays are laid over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from velatura.base.base import Base
from velatura.base.text import TextEncoder
from velatura.errors import UnsupportedBase
from velatura.overlays.contexts import Group, Remembering
from velatura.overlays.effect import Listener
from velatura.overlays.layers import BLOCK_NAMES, attention_layers
from velatura.prompts.strengths import BLOCKS, Block

TOWERS = ("text_encoder", "text_encoder_2")  # as diffusers' pipelines call them


@dataclass(frozen=True)
class Target:
    """The parts of a Base, of a diffusers pipeline, or a UNet alone, and in which of its blocks an overlay may act.

    towers: the text models, two in an SDXL. group: those it acts side by side with; changes: what the overlay laid
    there; listener: hears what it does; words: the encoder of a Base, which knows its words.
    """

    name: str
    unet: nn.Module
    towers: tuple[nn.Module, ...] = ()
    blocks: tuple[Block, ...] = BLOCKS
    group: Group | None = None
    changes: list[Remembering] = field(default_factory=list["Remembering"])
    listener: Listener = field(default_factory=Listener)
    words: TextEncoder | None = None

    @classmethod
    def of(cls, thing: object, blocks: tuple[Block, ...] = BLOCKS, group: Group | None = None) -> Self:
        """Find the parts of anything that has a UNet, or is one."""
        if isinstance(thing, Base):
            return cls(
                thing.name, thing.unet, tuple(each.model for each in thing.text.towers), blocks, group, words=thing.text
            )
        unet: Any = getattr(thing, "unet", thing)
        if not isinstance(unet, nn.Module):
            raise UnsupportedBase(
                f"a {type(thing).__name__} has no UNet to lay an overlay over: "
                "attach to a velatura base, a diffusers pipeline or its UNet"
            )
        unet = getattr(unet, "_orig_mod", unet)  # what torch.compile wraps
        towers = [getattr(thing, tower, None) for tower in TOWERS]
        found = tuple(getattr(each, "_orig_mod", each) for each in towers if isinstance(each, nn.Module))
        return cls(type(thing).__name__, unet, found, blocks, group)

    @property
    def device(self) -> torch.device:
        """Where the UNet computes: where it lives, or where offloading brings it for that."""
        brought = (getattr(getattr(each, "_hf_hook", None), "execution_device", None) for each in self.unet.modules())
        found = next((each for each in brought if each is not None), None)
        return next(self.unet.parameters()).device if found is None else torch.device(found)

    def attention_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The attention layers that the overlay may touch, with their names."""
        return attention_layers(self.unet, self.blocks)

    def layer(self, name: str) -> nn.Module:
        """A layer by the name that it has among parts, such as unet.mid_block.resnets.0.conv1."""
        part, _, path = name.partition(".")
        return self.parts[part].get_submodule(path)

    @property
    def share(self) -> float:
        """By what changes that add up are multiplied: those that act side by side may be averaged."""
        return 1 / self.group.size if self.group is not None and self.group.mode == "average" else 1.0

    def reaches(self, name: str) -> bool:
        """Whether the overlay may touch a layer of that name: in the UNet only within its blocks."""
        prefixes = tuple(f"unet.{BLOCK_NAMES[block]}" for block in self.blocks)
        return self.blocks == BLOCKS or not name.startswith("unet.") or name.startswith(prefixes)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The UNet and the text towers, by the names that diffusers' pipelines have for them."""
        return {"unet": self.unet} | dict(zip(TOWERS, self.towers, strict=False))
