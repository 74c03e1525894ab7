"""Predictions of a base that the tests of merging compare, and LoRAs that change them."""

from __future__ import annotations

import torch

import velatura

CALIBRATION_PROMPTS = ["a red fox", "a lighthouse at dusk", "a robot", "a small house in the snow"]


@torch.no_grad()
def predict_noise(base: velatura.Base, size: int = 16) -> torch.Tensor:
    """Return a base's prediction for latents and a prompt that no bake here has seen."""
    latents = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.conditioning(["an owl on a branch"]))


def predict_with(base: velatura.Base, *overlays: tuple[velatura.Overlay, object]) -> torch.Tensor:
    """Return the same with overlays attached at their strengths."""
    attachments = [velatura.attach(base, overlay, strength) for overlay, strength in overlays]
    try:
        return predict_noise(base)
    finally:
        for attachment in attachments:
            attachment.detach()


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def random_lora(base: velatura.Base, algorithm: str, seed: int = 1, **options: object) -> velatura.Lora:
    """Make a LoRA of every fourth layer that an algorithm can change, with random weights."""
    fields = {"rank": 4, "targets": "conv", "text": True, "seed": seed, "name": algorithm, **options}
    lora = velatura.Lora.for_base(base, algorithm=algorithm, **fields)
    lora = velatura.Lora(lora.card, dict(list(lora.layers.items())[::4]))  # enough of all kinds of layers
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lora.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return lora
