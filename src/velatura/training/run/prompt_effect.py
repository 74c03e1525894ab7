"""Effect of an overlay on what the UNet predicts, measured alike for every kind: beside the effect of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.encoding_context import guided_rows
from velatura.compare.tune_prompts import tune_prompts
from velatura.errors import ignore_warnings
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, encode_prompts
from velatura.training.run.verdict import LOWER_STRENGTHS, overpowers

# Pure noise at the last timestep, where nothing but the prompt decides what a picture will show: no picture is needed
NOISE_SEED = 0
LARGE_BASE_PROMPTS = 4  # on bases other than tiny, where every prompt takes as long as a step of a picture


@dataclass(frozen=True)
class PromptEffect:
    """Effect of an overlay on predictions, as shares of the effect that a prompt has on them without the overlay.

    The effect of a prompt is the difference between the prediction for it and that for no prompt, which guidance
    multiplies.

    Attributes:
        change: How much the overlay changes predictions: 1 for as much as a prompt does.
        prompt_left: How much of the effect of a prompt is left, in its own direction: 1 for all of it, 0 for nothing.
    """

    change: float
    prompt_left: float


def measure_effect(base: Base, overlay: Overlay, called_by: str = "") -> tuple[PromptEffect, float | None]:
    """Measure the effect of an overlay at strength 1, and find a lower strength if it overpowers the prompt there.

    Args:
        base: The base, without the overlay.
        overlay: The overlay.
        called_by: See `PromptEffectMeter`.

    Returns:
        The effect at 1, and the highest of `LOWER_STRENGTHS` at which enough of the prompt is left; None if it does
        not overpower, or does so at all of them.
    """
    meter = PromptEffectMeter(base, overlay, called_by)
    effect = meter.measure(1.0)
    if not overpowers(effect.prompt_left):
        return effect, None
    milder = (strength for strength in LOWER_STRENGTHS if not overpowers(meter.measure(strength).prompt_left))
    return effect, next(milder, None)


class PromptEffectMeter:
    """Measures the effect of an overlay at any strength, by one step for each prompt.

    Args:
        base: The base, without the overlay.
        overlay: The overlay.
        called_by: Words that call it in a prompt besides its trigger words, as its training captions had them.
    """

    def __init__(self, base: Base, overlay: Overlay, called_by: str = "") -> None:
        is_tiny = base.family.name == "tiny"
        prompts = tune_prompts(overlay, [], is_tiny=is_tiny, called_by=called_by)
        self._prompts = prompts if is_tiny else prompts[:LARGE_BASE_PROMPTS]
        self._batch_size = len(prompts) if is_tiny else 1
        self._base, self._overlay = base, overlay
        side = base.family.default_pixels // 8
        generator = torch.Generator().manual_seed(NOISE_SEED)
        self._noise = torch.randn(len(self._prompts), base.latent_channels, side, side, generator=generator)
        self._plain_uncond, self._plain_cond = self._predict_all([prompt.text for prompt in self._prompts])

    def measure(self, strength: float) -> PromptEffect:
        """Return the effect at a strength."""
        with ignore_warnings(), attach(self._base, self._overlay, strength):  # of an overlay that changes nothing
            uncond, cond = self._predict_all([prompt.called for prompt in self._prompts])
        plain_effect = self._plain_cond - self._plain_uncond
        change = ((cond - self._plain_cond).square().sum() / plain_effect.square().sum()).sqrt()
        left = ((cond - uncond) * plain_effect).sum() / plain_effect.square().sum()
        return PromptEffect(float(change), float(left))

    def _predict_all(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the predictions for no prompt and for prompts, (prompts, channels, height, width), in float32."""
        starts = range(0, len(texts), self._batch_size)
        pairs = [
            self._predict(texts[start : start + self._batch_size], self._noise[start : start + self._batch_size])
            for start in starts
        ]
        unconds, conds = zip(*pairs, strict=True)
        return torch.cat(unconds), torch.cat(conds)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _predict(self, texts: Sequence[str], noise: Tensor) -> tuple[Tensor, Tensor]:
        base, count = self._base, len(texts)
        prompts = [Prompt.parse(text) for text in texts]
        chunks = max(len(chunks_of(base.text, prompt)) for prompt in prompts)
        negative = encode_prompts(base.text, [Prompt.parse("")] * count, chunks, is_negative=True)
        rows = Conditioning.concatenate([negative, encode_prompts(base.text, prompts, chunks)])
        latents = torch.cat([noise, noise]).to(base.device, base.dtype)
        timesteps = torch.full((2 * count,), len(base.schedule) - 1)
        with guided_rows(count):
            predictions = base.predict(latents, timesteps, rows).float().cpu()
        return predictions[:count], predictions[count:]
