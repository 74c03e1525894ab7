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
from velatura.training.checkpointing import checkpointed
from velatura.training.objective import denoising_loss
from velatura.training.plan import Plan
from velatura.training.precision import frozen_base, learnable, products_in
from velatura.training.speech import Speech, name_of

# Tensors of an overlay's size, in float32: weights, gradients, what each optimizer remembers; a copy to undo a step by,
# where moving.py cannot do without
COPIES = {"adamw": 4, "adafactor": 3, "lion": 3, "prodigy": 11, "adamw8bit": 2.5, "schedule_free": 4}


@dataclass(frozen=True)
class Estimate:
    """Seconds for all steps, and bytes in memory at the most; both without previews and the encoding of pictures."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes, hours = self.seconds / 60, self.seconds / 3600
        took = (
            f"{hours:.1f} hours"
            if hours >= 2
            else f"{minutes:.0f} minutes"
            if minutes >= 2
            else f"{self.seconds:.0f} s"
        )
        return f"about {took} and {self.memory / 2**30:.1f} GiB of memory"


@torch.inference_mode(mode=False)
@torch.enable_grad()
def estimate(base: Base, overlay: Overlay, plan: Plan) -> Estimate:
    """Measure the second of two steps that move nothing; the overlay and chance are left as they are."""
    frozen = frozen_base(base, plan.precision, learns_text="text" in overlay.touches)
    devices = [base.device] if base.device.type == "cuda" else []
    with (
        _unsaid(),
        checkpointed(frozen, wanted=plan.checkpointing),
        attach(frozen, learnable(overlay)),
        torch.random.fork_rng(devices),  # pyright: ignore[reportUnknownMemberType]
    ):
        overlay.train()
        try:
            _step(frozen, overlay, plan)  # what is allocated and chosen once is not counted
            started = time.perf_counter()
            activations = _step(frozen, overlay, plan)
            seconds = (time.perf_counter() - started) * plan.accumulation
        finally:
            overlay.eval()
    size = sum(weight.numel() for weight in overlay.parameters()) * 4
    weights = base.byte_count + (0 if frozen is base else frozen.byte_count)
    copies = COPIES[plan.optimizer] + (2 if plan.ema else 0)  # the average, and the weights themselves while it is used
    return Estimate(seconds * plan.rates().end, weights + round(copies * size) + activations)


@contextmanager
def _unsaid() -> Generator[None]:
    """Without the warnings that the run itself says where it attaches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)
        yield


def _step(base: Base, overlay: Overlay, plan: Plan) -> int:
    """Go forth and back once; returns the bytes that the way forth left for the way back."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = (plan.pixels or base.family.default_pixels) // base.family.latent_factor
    latents = torch.randn(plan.batch_size, 4, side, side, device=base.device)
    captions = [f"picture {number}, {name_of(overlay)}" for number in range(plan.batch_size)]  # calls an embedding
    timesteps = torch.full((plan.batch_size,), len(base.schedule) // 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        said = Speech(base.text, captions, is_learned="text" in overlay.touches).plainly(torch.arange(plan.batch_size))
        with products_in(base):
            loss = denoising_loss(base, latents, said, torch.randn_like(latents), timesteps)
    torch.autograd.grad(loss, [each for each in overlay.parameters() if each.requires_grad], allow_unused=True)
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    parts = (base.unet, overlay, *(tower.model for tower in base.text.towers))
    mine = {weight.untyped_storage().data_ptr() for part in parts for weight in part.parameters()}
    return sum(size for place, size in kept.items() if place not in mine)
