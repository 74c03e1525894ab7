"""A base at work under its overlays: which contexts its attention reads, and what it predicts."""

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

SPLITS: tuple[CalibrationSplit, ...] = ("fit", "fit", "choose", "held out")  # of four prompts in a row
DEFAULT_PROMPT_COUNT = 16  # painted, unless others are given
TEXT_ONLY_COUNT = 240  # more that are only read: a text costs little, and cross-attention reads nothing else
BATCH_SIZE = 4  # pictures in a batch; the UNet sees each twice
GUIDANCE = 7.5

OnCalibrationStep = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class CalibrationStep:
    """One step of a picture that nothing is fitted to: what the UNet read and what it made of it."""

    latents: Tensor
    timestep: Tensor
    cond: Conditioning
    prediction: Tensor
    prompts: tuple[str, ...]


@dataclass
class Calibration:
    """What was heard: moments by source of contexts, part and split, and the steps of the held-out prompts."""

    moments: dict[tuple[str, int, CalibrationSplit], Moments] = field(
        default_factory=dict[tuple[str, int, CalibrationSplit], Moments]
    )
    held_out_steps: list[CalibrationStep] = field(default_factory=list[CalibrationStep])
    prompt_counts: dict[CalibrationSplit, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def add_context(self, source: str, hypernet_map: HypernetMap, context: Tensor, split: CalibrationSplit) -> None:
        """Count a context in, with what the chain makes of it."""
        for kv_index in KV_INDICES:
            moments = self.moments.setdefault(
                (source, kv_index, split), Moments.zeros(context.shape[-1], context.device)
            )
            moments.add(context, hypernet_map.change(context.float(), kv_index), centred=kv_index == K)

    def has_source(self, source: str) -> bool:
        """Whether contexts of a source were heard."""
        return (source, K, "held out") in self.moments

    def split_moments(self, source: str, kv_index: int) -> tuple[Moments, Moments, Moments]:
        """The moments to fit to, to choose by, and to judge by."""
        fit, choose, held_out = (self.moments[source, kv_index, split] for split in ("fit", "choose", "held out"))
        return fit, choose, held_out


class _Observer:
    """Hears the contexts of a base, each constant one once."""

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
            self._text_context = context  # the same in every layer and at every step
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
    """Let the base paint under its overlays, and keep moments of the contexts of the chains given.

    Of four prompts in a row two are fitted to, one chooses the fit, and one judges it. Without chains there is nothing
    to fit, and only the last are painted. speaker: whose text towers say what the base's do under the overlays.
    """
    batches = list(
        _batches(
            built_in_prompts(DEFAULT_PROMPT_COUNT) if prompts is None else prompts, held_out_only=not maps_by_width
        )
    )
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
        raise BadRecipe(f"fewer than {len(SPLITS)} prompts leave none to judge the fit by: give more, or none at all")
    for split, split_prompts in by_split.items():
        if held_out_only and split != "held out":
            continue
        for start in range(0, len(split_prompts), BATCH_SIZE):
            yield split, split_prompts[start : start + BATCH_SIZE]


def _observe_texts(base: Base, maps_by_width: Mapping[int, HypernetMap], calibration: Calibration) -> None:
    """Fit to the contexts of many more texts, which need not be painted."""
    if hypernet_map := maps_by_width.get(base.text.width):
        for start in range(0, TEXT_ONLY_COUNT, BATCH_SIZE):
            context = base.text.encode(built_in_prompts(BATCH_SIZE, DEFAULT_PROMPT_COUNT + start)).to(
                base.device, base.dtype
            )
            calibration.add_context(f"text {base.text.width}", hypernet_map, context, "fit")


def _sample_ddim(base: Base, prompts: Sequence[str], steps: int, seed: int) -> Iterator[CalibrationStep]:
    """Paint prompts with guidance by DDIM without noise (Song et al. 2020, eq. 12, sigma 0), giving each step."""
    conditioning = cfg_conditioning(base, prompts)
    latent_size = base.family.default_pixels // base.family.vae_scale_factor
    shape = len(prompts), int(base.unet.config["in_channels"]), latent_size, latent_size
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
    """What a base says of empty negative prompts and of prompts, as guidance has the UNet read them."""
    cond = Conditioning.concatenate([_uncond(base, len(prompts)), base.text.conditioning(prompts)])
    return cond.to(base.device, base.dtype)


def _uncond(base: Base, count: int) -> Conditioning:
    """What empty negative prompts say, which is nothing at all to an SDXL."""
    cond = base.text.conditioning([""] * count)
    return cond.zero_out() if base.needs_pooled else cond


def ddim_step(latents: Tensor, model_output: Tensor, alpha: float, next_alpha: float, prediction_type: str) -> Tensor:
    """From one level of noise to the next; a velocity gives clean latents and noise too (Salimans and Ho 2022, D)."""
    alpha_t, sigma_t = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "v_prediction":
        denoised, pred_noise = alpha_t * latents - sigma_t * model_output, sigma_t * latents + alpha_t * model_output
    else:
        denoised, pred_noise = (latents - sigma_t * model_output) / alpha_t, model_output
    return next_alpha**0.5 * denoised + (1 - next_alpha) ** 0.5 * pred_noise
