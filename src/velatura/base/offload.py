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

Part = Sequence[nn.Module]  # what computes at the same time: the text towers, the UNet, the autoencoder
CPU = torch.device("cpu")


class Stage:
    """A device that holds one part at a time: calling any of its models brings the part there, and clears the rest."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.device = device
        self.parts = tuple(parts)
        self.present: Part | None = None
        for part in self.parts:
            for model in part:
                add_hook_to_module(model, _Entrance(self, part))

    def holds(self, model: nn.Module) -> bool:
        """Whether this is one of its models; a copy of one is not."""
        return any(model is each for part in self.parts for each in part)

    def bring(self, part: Part) -> None:
        """Bring a part to the device, unless it is there already."""
        if self.present is part:
            return
        self.clear()
        _move(part, self.device)
        self.present = part

    def clear(self) -> None:
        """Send what is there back to the CPU."""
        if self.present is not None:
            _move(self.present, CPU)
        self.present = None

    def close(self) -> None:
        """Leave every model where it is, and move none any more."""
        for part in self.parts:
            for model in part:
                remove_hook_from_module(model)


class _Entrance(ModelHook):
    """What accelerate calls before a model computes; a copy of the model is a plain one, and stays where it is."""

    def __init__(self, stage: Stage, part: Part) -> None:
        self.stage = stage
        self.part = part
        self.execution_device = stage.device

    def __deepcopy__(self, _memo: dict[int, Any]) -> ModelHook:
        return ModelHook()

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Wait in the CPU's memory."""
        return nn.Module.to(module, CPU)

    def pre_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Come to the device, with all that the model is given."""
        self.stage.bring(self.part)
        send = cast("Callable[..., Any]", utils.send_to_device)  # pyright: ignore[reportUnknownMemberType]
        return send(args, self.stage.device), send(kwargs, self.stage.device)


def _move(part: Part, device: torch.device) -> None:
    for model in part:
        nn.Module.to(model, device)
