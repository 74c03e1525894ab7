"""Model offloading: parts of a base stay in CPU memory until they compute, for GPUs too small for all of them."""

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

ModelGroup = Sequence[nn.Module]  # models that are moved together: the text encoders, the UNet, or the VAE
CPU = torch.device("cpu")


class ModelOffloader:
    """Keeps one group of models at a time on a device. A call of a model moves its group there, and the others away.

    Args:
        groups: Groups of models that compute at the same time. Hooks of accelerate are added to their models.
        device: Device on which the models compute.
    """

    def __init__(self, groups: Sequence[ModelGroup], device: torch.device) -> None:
        self.device = device
        self.groups = tuple(groups)
        self.loaded_group: ModelGroup | None = None
        for group in self.groups:
            for model in group:
                add_hook_to_module(model, _OffloadHook(self, group))

    def has_model(self, model: nn.Module) -> bool:
        """Return True if this very model is offloaded; a copy of it is not."""
        return any(model is member for group in self.groups for member in group)

    def load(self, group: ModelGroup) -> None:
        """Move a group to the device, and the group that is there back to the CPU."""
        if self.loaded_group is group:
            return
        self.unload()
        _move(group, self.device)
        self.loaded_group = group

    def unload(self) -> None:
        """Move the group on the device back to the CPU."""
        if self.loaded_group is not None:
            _move(self.loaded_group, CPU)
        self.loaded_group = None

    def remove_hooks(self) -> None:
        """Stop moving models. They stay on the devices where they are."""
        for group in self.groups:
            for model in group:
                remove_hook_from_module(model)


class _OffloadHook(ModelHook):
    """Hook that accelerate calls before a model computes. A copy of the model gets a hook that does nothing."""

    def __init__(self, offloader: ModelOffloader, group: ModelGroup) -> None:
        self.offloader = offloader
        self.group = group
        self.execution_device = offloader.device

    def __deepcopy__(self, _memo: dict[int, Any]) -> ModelHook:
        return ModelHook()

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Move the model to the CPU when the hook is added."""
        return nn.Module.to(module, CPU)

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Move the model's group and its arguments to the device."""
        self.offloader.load(self.group)
        send = cast("Callable[..., Any]", utils.send_to_device)  # pyright: ignore[reportUnknownMemberType]
        return send(args, self.offloader.device), send(kwargs, self.offloader.device)


def _move(group: ModelGroup, device: torch.device) -> None:
    for model in group:
        nn.Module.to(model, device)
