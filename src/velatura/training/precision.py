"""The precision that a frozen base runs in while an overlay is trained on it."""

import copy

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.devices import multiplies_bfloat16
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import writable
from velatura.training.plan import Precision

# latents along a side up to which plain attention trains faster on a CPU than a fused one, by a third at 16
FEW_LATENTS = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def frozen_base(base: Base, precision: Precision, *, learns_text: bool = False) -> Base:
    """The base as it is trained on: itself, or one that shares all with it but has a converted copy of the UNet.

    learns_text: whether gradients go through the text towers, most of which float16 would round to nothing.
    A copy, since the base must come out of a training as it went in: to convert it there and back would round it.
    """
    dtype = training_dtype(base.device) if precision == "auto" else DTYPES[precision]
    frozen = copy.copy(base)
    if dtype != base.dtype or _is_inert(base.unet):
        frozen.unet = _converted(base.unet, dtype)
    models = [tower.model for tower in base.text.towers]
    is_coarse = learns_text and any(model.dtype == torch.float16 for model in models)
    if is_coarse or any(map(_is_inert, models)):
        frozen.text = base.text.copied()
    if is_coarse:
        for tower in frozen.text.towers:
            nn.Module.to(tower.model, torch.float32)
    return base if (frozen.unet, frozen.text) == (base.unet, base.text) else frozen


def learnable(overlay: Overlay) -> Overlay:
    """The overlay itself, in float32, with tensors that gradients can go through: those of inference mode cannot."""
    with writable():
        overlay.float()
        for module in overlay.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.is_inference():
                    module.register_parameter(name, nn.Parameter(weight.detach().clone(), weight.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_inference():
                    setattr(module, name, buffer.clone())
    return overlay


def products_in(base: Base) -> torch.autocast:
    """Multiply an overlay's float32 weights in the base's precision, where that is half, as mixed precision does."""
    half = base.dtype in {torch.bfloat16, torch.float16}
    return torch.autocast(base.device.type, base.dtype if half else None, enabled=half)


def training_dtype(device: torch.device) -> torch.dtype:
    """The precision to train in on a device: bfloat16 where it is multiplied faster than float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def _converted(unet: UNet2DConditionModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """A frozen copy in another dtype and in channels_last, which convolutions in bfloat16 need to gain anything.

    deepcopy is handed the converted weights, so that there is never a second copy in the old dtype.
    """
    converted: dict[int, object] = {id(weight): _frozen_weight(weight, dtype) for weight in unet.parameters()}
    copied = copy.deepcopy(unet, converted)
    nn.Module.to(copied, dtype)
    if unet.device.type == "cpu" and unet.config["sample_size"] <= FEW_LATENTS:
        copied.set_attn_processor(AttnProcessor())
    return copied


def _frozen_weight(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
    converted = weight.detach().to(dtype, memory_format=layout, copy=weight.is_inference())
    return nn.Parameter(converted, requires_grad=False)


def _is_inert(model: nn.Module) -> bool:
    """Whether it was made in inference mode, so that no gradient can go through it."""
    return any(weight.is_inference() for weight in model.parameters())
