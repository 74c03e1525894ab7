"""The places where an overlay may touch a base: the only file that hangs hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor, nn

from velatura.errors import UnsupportedBase

Undo = Callable[[], None]
Change = Callable[[Tensor], Tensor]


def attention_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that reads a context through to_k and to_v, with its name."""
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(getattr(layer, "to_k", None), nn.Module) and isinstance(getattr(layer, "to_v", None), nn.Module):
            yield name, layer


def context_width(layer: nn.Module) -> int:
    """How many features the context of an attention layer has."""
    width = layer.get_submodule("to_k").in_features
    assert isinstance(width, int)
    return width


def on_contexts(model: nn.Module, width: int, change_k: Change, change_v: Change) -> Iterator[Undo]:
    """Change what K and V read in every attention layer whose context has this width.

    Hooks on to_k and to_v see what any attention processor reads, so the user's own processor stays.
    """
    for name, layer in attention_layers(model):
        refuse_bypasses(name, layer)
        if context_width(layer) != width:
            continue
        yield layer.get_submodule("to_k").register_forward_pre_hook(_first_argument(change_k)).remove
        yield layer.get_submodule("to_v").register_forward_pre_hook(_first_argument(change_v)).remove


def refuse_bypasses(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose K and V are computed elsewhere than in to_k and to_v."""
    if getattr(layer, "fused_projections", False):
        raise UnsupportedBase(
            f"{name} computes Q, K and V in one fused product, past the reach of overlays: "
            "call unfuse_qkv_projections() on the model first"
        )
    if getattr(layer, "add_k_proj", None) is not None:
        raise UnsupportedBase(
            f"{name} has a second pair of K and V (add_k_proj), which overlays do not cover yet: "
            "use a base without added projections"
        )


def heed_hooks_when_compiled() -> None:
    """Make torch.compile notice hooks that come and go after a model was traced.

    Dynamo skips guards on module hooks unless told otherwise, and what it traced before stays as it was. Without dynamo
    nothing is compiled and nothing is to be done; once told, its guards suffice.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


def _first_argument(change: Change) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(arguments[0]), *arguments[1:])

    return hook
