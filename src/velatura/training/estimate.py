"""What a training will take, known before it begins: one step is taken on made-up latents, and measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import VelaturaWarning
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.training.data.captions import CaptionConditioning, caption_name
from velatura.training.loss import denoising_loss
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast, frozen_base, gradient_checkpointing, make_trainable

# Tensors of an overlay's size, in float32: weights, gradients, what each optimizer remembers; a copy to undo a step by,
# where moving.py cannot do without
TENSOR_COPIES = {"adamw": 4, "adafactor": 3, "lion": 3, "prodigy": 11, "adamw8bit": 2.5, "schedule_free": 4}


@dataclass(frozen=True)
class Estimate:
    """Seconds for all steps, and bytes in memory at the most; both without previews and the encoding of pictures."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes, hours = self.seconds / 60, self.seconds / 3600
        duration = (
            f"{hours:.1f} hours"
            if hours >= 2
            else f"{minutes:.0f} minutes"
            if minutes >= 2
            else f"{self.seconds:.0f} s"
        )
        return f"about {duration} and {self.memory / 2**30:.1f} GiB of memory"


@torch.inference_mode(mode=False)
@torch.enable_grad()
def estimate(base: Base, overlay: Overlay, plan: Plan) -> Estimate:
    """Measure the second of two steps that move nothing; the overlay and chance are left as they are."""
    frozen = frozen_base(base, plan.precision, trains_text="text" in overlay.target_parts)
    devices = [base.device] if base.device.type == "cuda" else []
    with (
        _without_warnings(),
        gradient_checkpointing(frozen, is_enabled=plan.checkpointing),
        attach(frozen, make_trainable(overlay)),
        torch.random.fork_rng(devices),  # pyright: ignore[reportUnknownMemberType]
    ):
        overlay.train()
        try:
            _trial_step(frozen, overlay, plan)  # what is allocated and chosen once is not counted
            start_time = time.perf_counter()
            activation_bytes = _trial_step(frozen, overlay, plan)
            seconds = (time.perf_counter() - start_time) * plan.accumulation
        finally:
            overlay.eval()
    overlay_bytes = sum(weight.numel() for weight in overlay.parameters()) * 4
    base_bytes = base.byte_count + (0 if frozen is base else frozen.byte_count)
    copies = TENSOR_COPIES[plan.optimizer] + (
        2 if plan.ema else 0
    )  # the average, and the weights themselves while it is used
    return Estimate(seconds * plan.rates().end, base_bytes + round(copies * overlay_bytes) + activation_bytes)


@contextmanager
def _without_warnings() -> Generator[None]:
    """Without the warnings that the run itself says where it attaches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)
        yield


def _trial_step(base: Base, overlay: Overlay, plan: Plan) -> int:
    """Go forth and back once; returns the bytes that the way forth left for the way back."""
    saved_bytes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = (plan.pixels or base.family.default_pixels) // base.family.vae_scale_factor
    latents = torch.randn(plan.batch_size, 4, side, side, device=base.device)
    captions = [f"picture {number}, {caption_name(overlay)}" for number in range(plan.batch_size)]  # calls an embedding
    timesteps = torch.full((plan.batch_size,), len(base.schedule) // 2)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        cond = CaptionConditioning(
            base.text, captions, trains_text="text" in overlay.target_parts
        ).encode_for_validation(torch.arange(plan.batch_size))
        with base_autocast(base):
            loss = denoising_loss(base, latents, cond, torch.randn_like(latents), timesteps)
    torch.autograd.grad(loss, [weight for weight in overlay.parameters() if weight.requires_grad], allow_unused=True)
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    modules = (base.unet, overlay, *(tower.model for tower in base.text.encoders))
    parameter_pointers = {weight.untyped_storage().data_ptr() for module in modules for weight in module.parameters()}
    return sum(size for pointer, size in saved_bytes.items() if pointer not in parameter_pointers)
