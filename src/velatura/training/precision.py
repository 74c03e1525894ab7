"""Precision and memory of a training: the frozen base's dtype, autocast, gradient checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.devices import has_fast_bfloat16
from velatura.errors import ignore_warnings
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import disable_inference_mode
from velatura.training.plan import Precision

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

# Side of the latents up to which plain attention trains faster than fused attention on a CPU, by a third at 16
MAX_PLAIN_ATTENTION_SIDE = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def frozen_base(base: Base, precision: Precision, *, trains_text: bool = False) -> Base:
    """Return the base itself, or a base that shares all with it except converted copies of UNet and text encoders.

    The base itself is never converted, because converting it back would leave it rounded.

    Args:
        base: Base to train on.
        precision: dtype of the UNet; "auto" is `training_dtype` of the base's device.
        trains_text: Gradients go through the text encoders; those in float16 are copied to float32, because float16
            rounds most gradients to 0.
    """
    dtype = training_dtype(base.device) if precision == "auto" else DTYPES[precision]
    frozen = copy.copy(base)
    if dtype != base.dtype or _has_inference_weights(base.unet):
        frozen.unet = _convert_unet(base.unet, dtype)
    models = [encoder.model for encoder in base.text.encoders]
    has_float16_text = trains_text and any(model.dtype == torch.float16 for model in models)
    if has_float16_text or any(map(_has_inference_weights, models)):
        frozen.text = base.text.deep_copy()
    if has_float16_text:
        for encoder in frozen.text.encoders:
            nn.Module.to(encoder.model, torch.float32)
    return base if (frozen.unet, frozen.text) == (base.unet, base.text) else frozen


def make_trainable(overlay: Overlay) -> Overlay:
    """Convert an overlay to float32 in place, replace tensors of inference mode, and return it.

    Gradients cannot go through tensors that were created in inference mode.
    """
    with disable_inference_mode():
        overlay.float()
        for module in overlay.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.is_inference():
                    module.register_parameter(name, nn.Parameter(weight.detach().clone(), weight.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_inference():
                    setattr(module, name, buffer.clone())
    return overlay


def base_autocast(base: Base) -> torch.autocast:
    """Return a context in which float32 weights are multiplied in the base's dtype if that is a half-precision one."""
    is_half = base.dtype in {torch.bfloat16, torch.float16}
    return torch.autocast(base.device.type, base.dtype if is_half else None, enabled=is_half)


def training_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where a device multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if has_fast_bfloat16() else torch.float32


def _convert_unet(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """Return a frozen copy in another dtype and in channels_last, without which bfloat16 convolutions gain nothing.

    `deepcopy` receives the converted weights through its memo, so that there is never a second copy in the old dtype.
    """
    memo: dict[int, object] = {id(weight): _frozen_weight(weight, dtype) for weight in unet.parameters()}
    with ignore_warnings():  # of overlays that are not copied: the trainer refuses them
        unet_copy = copy.deepcopy(unet, memo)
    nn.Module.to(unet_copy, dtype)
    if unet.device.type == "cpu" and unet.config["sample_size"] <= MAX_PLAIN_ATTENTION_SIDE:
        from diffusers.models.attention_processor import AttnProcessor

        unet_copy.set_attn_processor(AttnProcessor())
    return unet_copy


def _frozen_weight(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
    data = weight.detach().to(dtype, memory_format=layout, copy=weight.is_inference())
    return nn.Parameter(data, requires_grad=False)


def _has_inference_weights(model: nn.Module) -> bool:
    """Return True if the model was created in inference mode, so that no gradient can go through it."""
    return any(weight.is_inference() for weight in model.parameters())


@contextmanager
def gradient_checkpointing(base: Base, *, is_enabled: bool) -> Generator[None]:
    """Enable gradient checkpointing in the UNet inside the block, unless it is enabled already."""
    unet: Any = base.unet
    if not is_enabled or unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
