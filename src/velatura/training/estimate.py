"""Estimate of the time and memory of a training, measured in a trial step on random latents."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import ignore_warnings
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.training.data.captions import CaptionConditioning, caption_name
from velatura.training.loss import denoising_errors
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast, frozen_base, gradient_checkpointing, make_trainable

# Tensors in float32, of the overlay's size: weights, gradients, the optimizer's state, and a copy to undo a step with
# where optimizers.is_finite_step cannot rule out NaN
TENSOR_COPIES = {"adamw": 4, "adafactor": 3, "lion": 3, "prodigy": 11, "adamw8bit": 2.5, "schedule_free": 4}


@dataclass(frozen=True)
class Estimate:
    """Duration of all steps in seconds and peak memory in bytes, without previews and the encoding of pictures."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"about {_duration_text(self.seconds)} and {self.memory / 2**30:.1f} GiB of memory"


@torch.inference_mode(mode=False)
@torch.enable_grad()
def estimate(base: Base, overlay: Overlay, plan: Plan) -> Estimate:
    """Measure a forward and backward pass that changes no weights, and scale it to the whole plan.

    The overlay and the global random state stay as they are.
    """
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
            _trial_step(frozen, overlay, plan)  # not measured: the first step also allocates memory and picks kernels
            start_time = time.perf_counter()
            activation_bytes = _trial_step(frozen, overlay, plan)
            seconds = (time.perf_counter() - start_time) * plan.accumulation
        finally:
            overlay.eval()
    overlay_bytes = sum(weight.numel() for weight in overlay.parameters()) * 4
    base_bytes = base.byte_count + (0 if frozen is base else frozen.byte_count)
    # With an average, two more copies: the average, and the weights themselves while it is in use
    copies = TENSOR_COPIES[plan.optimizer] + (2 if plan.ema else 0)
    return Estimate(seconds * plan.rates().end, base_bytes + round(copies * overlay_bytes) + activation_bytes)


@contextmanager
def _without_warnings() -> Generator[None]:
    """Hide warnings of the trial, because the run itself warns of the same."""
    with ignore_warnings():
        yield


def _trial_step(base: Base, overlay: Overlay, plan: Plan) -> int:
    """Run forward and backward once and return the bytes of the activations saved for the backward pass."""
    saved_bytes: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = (plan.pixels or base.family.default_pixels) // base.family.vae_scale_factor
    latents = torch.randn(plan.batch_size, 4, side, side, device=base.device)
    # The overlay's name is in the captions, so that an embedding takes part
    captions = [f"picture {number}, {caption_name(overlay)}" for number in range(plan.batch_size)]
    conditioning = CaptionConditioning(base.text, captions, trains_text="text" in overlay.target_parts)
    timesteps = torch.full((plan.batch_size,), len(base.schedule) // 2)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        cond = conditioning.encode_for_validation(torch.arange(plan.batch_size))
        with base_autocast(base):
            loss = denoising_errors(base, latents, cond, torch.randn_like(latents), timesteps).mean()
    torch.autograd.grad(loss, [weight for weight in overlay.parameters() if weight.requires_grad], allow_unused=True)
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    modules = (base.unet, overlay, *(encoder.model for encoder in base.text.encoders))
    parameter_pointers = {weight.untyped_storage().data_ptr() for module in modules for weight in module.parameters()}
    return sum(size for pointer, size in saved_bytes.items() if pointer not in parameter_pointers)


def _duration_text(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} hours"
    if seconds >= 2 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds:.0f} s"
