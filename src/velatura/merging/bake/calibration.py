"""Run a base under its overlays on calibration prompts, and record its contexts' moments and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.errors import BadRecipe
from velatura.merging.bake.calibration_prompts import built_in_prompts
from velatura.merging.bake.hypernet_maps import KV_INDICES, HypernetMap, K, context_source
from velatura.merging.bake.regression import Moments
from velatura.overlays.attach import attach
from velatura.overlays.hooks.seams import record_contexts
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength

CalibrationSplit = Literal["fit", "choose", "held out"]

# Of four prompts in a row two are fitted to, one chooses the ridge of the regression, one measures the error.
SPLITS: tuple[CalibrationSplit, ...] = ("fit", "fit", "choose", "held out")
DEFAULT_PROMPT_COUNT = 16
TEXT_ONLY_COUNT = 240  # more prompts that are only encoded: cross-attention reads nothing else, and it costs little
BATCH_SIZE = 4  # pictures in a batch; with guidance the UNet sees each of them twice
GUIDANCE = 7.5
CALIBRATION_STEPS = 10

OnCalibrationStep = Callable[[int, int], None]  # called with how many steps are done, and how many there are


@dataclass(frozen=True)
class CalibrationStep:
    """One sampling step of a held-out batch: the inputs of the UNet, and its prediction under the overlays."""

    latents: Tensor
    timestep: Tensor
    cond: Conditioning
    prediction: Tensor
    prompts: tuple[str, ...]


@dataclass
class Calibration:
    """Moments and sampling steps recorded in a calibration.

    Attributes:
        moments: Moments by source of the contexts, K or V, and split.
        held_out_steps: The steps of the held-out prompts.
        prompt_counts: How many prompts each split has.
    """

    moments: dict[tuple[str, int, CalibrationSplit], Moments] = field(
        default_factory=dict[tuple[str, int, CalibrationSplit], Moments]
    )
    held_out_steps: list[CalibrationStep] = field(default_factory=list[CalibrationStep])
    prompt_counts: dict[CalibrationSplit, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def add_context(self, source: str, hypernet_map: HypernetMap, context: Tensor, split: CalibrationSplit) -> None:
        """Add a context, and what the hypernetworks add to it, to the moments."""
        for kv_index in KV_INDICES:
            moments = self.moments.setdefault(
                (source, kv_index, split), Moments.zeros(context.shape[-1], context.device)
            )
            moments.add(context, hypernet_map.change(context.float(), kv_index), centred=kv_index == K)

    def has_source(self, source: str) -> bool:
        """Return True if contexts of a source were recorded."""
        return (source, K, "held out") in self.moments

    def split_moments(self, source: str, kv_index: int) -> tuple[Moments, Moments, Moments]:
        """Return the moments to fit to, to choose the ridge by, and to measure the error by."""
        fit, choose, held_out = (self.moments[source, kv_index, split] for split in ("fit", "choose", "held out"))
        return fit, choose, held_out


class _Observer:
    """Records the contexts that a base reads, a text context that many layers share only once."""

    def __init__(self, calibration: Calibration, maps_by_width: Mapping[int, HypernetMap]) -> None:
        self._calibration, self._maps_by_width = calibration, maps_by_width
        self._text_context: Tensor | None = None
        self.split: CalibrationSplit = "fit"

    def observe(self, name: str, layer: nn.Module, context: Tensor) -> None:
        hypernet_map = self._maps_by_width.get(context.shape[-1])
        if hypernet_map is None or context is self._text_context:
            return
        source = context_source(name, layer)
        if source != name:
            self._text_context = context  # the same tensor in every layer and at every step
        self._calibration.add_context(source, hypernet_map, context, self.split)


@torch.no_grad()
def calibrate(
    base: Base,
    overlays: Sequence[tuple[Overlay, float | Strength]],
    maps_by_width: Mapping[int, HypernetMap],
    *,
    prompts: Sequence[str] | None,
    steps: int,
    on_step: OnCalibrationStep | None = None,
    text_base: Base | None = None,
) -> Calibration:
    """Let a base denoise calibration prompts under its overlays, and record moments of its contexts.

    Args:
        base: The base.
        overlays: The overlays with their strengths, which are attached meanwhile.
        maps_by_width: The maps to fit, by context width. If there are none, only the held-out prompts are denoised.
        prompts: At least four prompts; built-in ones by default.
        steps: Steps of each picture.
        on_step: Called after each step of a batch with how many are done, and how many there are.
        text_base: A base whose text encoders give the same contexts as the base's do under the overlays.

    Raises:
        BadRecipe: There are fewer than four prompts.
    """
    prompts = built_in_prompts(DEFAULT_PROMPT_COUNT) if prompts is None else prompts
    batches = list(_batches(prompts, held_out_only=not maps_by_width))
    calibration, done = Calibration(), 0
    observer = _Observer(calibration, maps_by_width)
    with ExitStack() as stack:
        for overlay, strength in overlays:
            stack.enter_context(attach(base, overlay, strength))
        for undo in record_contexts(base.unet, observer.observe):
            stack.callback(undo)
        for seed, (split, batch) in enumerate(batches):
            observer.split = split
            calibration.prompt_counts[split] += len(batch)
            for step in _sample_ddim(base, batch, steps, seed):
                if split == "held out":
                    calibration.held_out_steps.append(step)
                done += 1
                if on_step:
                    on_step(done, steps * len(batches))
    _observe_texts(text_base or base, maps_by_width, calibration)
    return calibration


def _batches(prompts: Iterable[str], *, held_out_only: bool) -> Iterator[tuple[CalibrationSplit, list[str]]]:
    by_split: dict[CalibrationSplit, list[str]] = {split: [] for split in SPLITS}
    for index, prompt in enumerate(prompts):
        by_split[SPLITS[index % len(SPLITS)]].append(prompt)
    if not all(by_split.values()):
        raise BadRecipe(f"fewer than {len(SPLITS)} prompts leave none to measure the error by: give more, or none")
    for split, split_prompts in by_split.items():
        if held_out_only and split != "held out":
            continue
        for start in range(0, len(split_prompts), BATCH_SIZE):
            yield split, split_prompts[start : start + BATCH_SIZE]


def _observe_texts(base: Base, maps_by_width: Mapping[int, HypernetMap], calibration: Calibration) -> None:
    """Record the contexts of many more texts, which are encoded but not denoised."""
    hypernet_map = maps_by_width.get(base.text.width)
    if hypernet_map is None:
        return
    for start in range(0, TEXT_ONLY_COUNT, BATCH_SIZE):
        context = base.text.encode(built_in_prompts(BATCH_SIZE, DEFAULT_PROMPT_COUNT + start))
        context = context.to(base.device, base.dtype)
        calibration.add_context(f"text {base.text.width}", hypernet_map, context, "fit")


def _sample_ddim(base: Base, prompts: Sequence[str], steps: int, seed: int) -> Iterator[CalibrationStep]:
    """Denoise prompts with guidance by DDIM with eta 0 (Song et al. 2020, eq. 12), and yield each step."""
    conditioning = cfg_conditioning(base, prompts)
    latent_size = base.family.default_pixels // base.family.vae_scale_factor
    shape = len(prompts), base.latent_channels, latent_size, latent_size
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(base.device)
    alphas = base.schedule.alphas_cumprod
    timesteps = torch.linspace(len(alphas) - 1, 0, steps + 1).long()
    for timestep, next_timestep in pairwise(timesteps):
        model_input = torch.cat([latents, latents])
        prediction = base.predict(model_input, timestep, conditioning)
        yield CalibrationStep(model_input, timestep, conditioning, prediction, tuple(prompts))
        uncond, cond = prediction.chunk(2)
        guided = uncond + GUIDANCE * (cond - uncond)
        latents = ddim_step(
            latents, guided, alphas[timestep].item(), alphas[next_timestep].item(), base.family.prediction
        )


def cfg_conditioning(base: Base, prompts: Sequence[str]) -> Conditioning:
    """Return the conditioning of empty negative prompts and of prompts, (2 * prompts, ...), as guidance needs it."""
    cond = Conditioning.concatenate([_uncond(base, len(prompts)), base.text.conditioning(prompts)])
    return cond.to(base.device, base.dtype)


def _uncond(base: Base, count: int) -> Conditioning:
    """Return the conditioning of empty negative prompts, which is all zeros for SDXL."""
    cond = base.text.conditioning([""] * count)
    return cond.zero_out() if base.needs_pooled else cond


def ddim_step(latents: Tensor, model_output: Tensor, alpha: float, next_alpha: float, prediction_type: str) -> Tensor:
    """Return the latents at the next noise level; v prediction by Salimans and Ho (2022, appendix D).

    Args:
        latents: (batch, 4, height / 8, width / 8).
        model_output: The UNet's prediction, of the same shape.
        alpha, next_alpha: The schedule's cumulative alpha at both noise levels.
        prediction_type: "epsilon" or "v_prediction".
    """
    alpha_t, sigma_t = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "v_prediction":
        denoised, pred_noise = alpha_t * latents - sigma_t * model_output, sigma_t * latents + alpha_t * model_output
    else:
        denoised, pred_noise = (latents - sigma_t * model_output) / alpha_t, model_output
    return next_alpha**0.5 * denoised + (1 - next_alpha) ** 0.5 * pred_noise
