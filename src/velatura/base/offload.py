"""Parts of a base that wait in the CPU's memory while another computes, for GPUs that do not hold them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import utils  # pyright: ignore[reportMissingTypeStubs]
from accelerate.hooks import (  # pyright: ignore[reportMissingTypeStubs]
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from torch import nn

ModelGroup = Sequence[nn.Module]  # what computes at the same time: the text towers, the UNet, the autoencoder
CPU = torch.device("cpu")


class ModelOffloader:
    """A device that holds one part at a time: calling any of its models brings the part there, and clears the rest."""

    def __init__(self, groups: Sequence[ModelGroup], device: torch.device) -> None:
        self.device = device
        self.groups = tuple(groups)
        self.loaded_group: ModelGroup | None = None
        for group in self.groups:
            for model in group:
                add_hook_to_module(model, _OffloadHook(self, group))

    def has_model(self, model: nn.Module) -> bool:
        """Whether this is one of its models; a copy of one is not."""
        return any(model is member for group in self.groups for member in group)

    def load(self, group: ModelGroup) -> None:
        """Bring a part to the device, unless it is there already."""
        if self.loaded_group is group:
            return
        self.unload()
        _move(group, self.device)
        self.loaded_group = group

    def unload(self) -> None:
        """Send what is there back to the CPU."""
        if self.loaded_group is not None:
            _move(self.loaded_group, CPU)
        self.loaded_group = None

    def remove_hooks(self) -> None:
        """Leave every model where it is, and move none any more."""
        for group in self.groups:
            for model in group:
                remove_hook_from_module(model)


class _OffloadHook(ModelHook):
    """What accelerate calls before a model computes; a copy of the model is a plain one, and stays where it is."""

    def __init__(self, offloader: ModelOffloader, group: ModelGroup) -> None:
        self.offloader = offloader
        self.group = group
        self.execution_device = offloader.device

    def __deepcopy__(self, _memo: dict[int, Any]) -> ModelHook:
        return ModelHook()

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Wait in the CPU's memory."""
        return nn.Module.to(module, CPU)

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Come to the device, with all that the model is given."""
        self.offloader.load(self.group)
        send = cast("Callable[..., Any]", utils.send_to_device)  # pyright: ignore[reportUnknownMemberType]
        return send(args, self.offloader.device), send(kwargs, self.offloader.device)


def _move(group: ModelGroup, device: torch.device) -> None:
    for model in group:
        nn.Module.to(model, device)
