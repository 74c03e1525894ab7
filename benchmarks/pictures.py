"""What `make bench` prints of painting: velatura beside diffusers' own pipeline at the same settings and precision.

Both paint in turns in one run, so that a slow moment of the machine strikes both: what counts is the ratio of the
shortest times. diffusers' pipeline is as it comes, its convolutions laid out as its files are; velatura lays its own
out with the channels last.
"""

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from bases import models
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import CLIPTextModel

import velatura
from overlays import sd15_unet
from velatura.base.families import FAMILIES
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.formats.vocabulary import clip_tokenizer

PROMPT, NEGATIVE = "a red house on the beach at night", "blurry, dark"
GUIDANCE, SEED = 7.0, 7

Tick = Callable[[], None]  # is to be called after each step
Paint = Callable[[Tick], Any]  # paints a picture and gives it


def velatura_painter(base: velatura.Base, pixels: int, steps: int) -> Paint:
    """Paint with Euler's sampler, as A1111 has it."""
    recipe = velatura.Recipe(prompt=PROMPT, negative=NEGATIVE, sampler="Euler", steps=steps, guidance=GUIDANCE)
    recipe = recipe.replace(seed=SEED, width=pixels, height=pixels)
    return lambda tick: velatura.generate(base, recipe, on_step=lambda _done, _total: tick()).image


def diffusers_painter(base: velatura.Base, pixels: int, steps: int) -> Paint:
    """Paint with copies of the same models in diffusers' pipeline, with the same levels of noise."""
    parts: tuple[Any, ...] = deepcopy((base.unet, base.vae, base.text.encoders[0].model))
    unet, vae, text = parts
    for part in (unet, vae):
        part.to(memory_format=torch.contiguous_format)
    scheduler: Any = EulerDiscreteScheduler(
        beta_start=base.schedule.beta_start,
        beta_end=base.schedule.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=base.family.prediction,
        steps_offset=1,
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=base.text.encoders[0].tokenizer,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def paint(tick: Tick) -> Any:
        def on_step_end(_pipeline: Any, _step: int, _time: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
            tick()
            return callback_kwargs

        return pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            width=pixels,
            height=pixels,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=on_step_end,
        ).images[0]

    return paint


def sd15() -> velatura.Base:
    """A base of Stable Diffusion 1.5's shape with random weights."""
    _, vae, text = models()
    parts: list[Any] = [sd15_unet(), vae.to_empty(device="cpu"), text.to_empty(device="cpu")]
    generator = torch.Generator().manual_seed(0)
    for part in parts[1:]:
        for weight in part.parameters():
            weight.data.normal_(std=0.02, generator=generator)
    parts[2] = CLIPTextModel(parts[2].config)  # whose positions are counted, not learned
    text_encoder = TextEncoder([ClipTextEncoder(clip_tokenizer(pads_with_zero=False), parts[2])])
    return velatura.Base(
        "SD1.5's shape", FAMILIES["SD1"], unet=parts[0], vae=parts[1], text=text_encoder, schedule=NoiseSchedule()
    )


def measure_seconds(painters: dict[str, Paint], rounds: int) -> dict[str, tuple[float, float]]:
    """The shortest picture and the shortest step of each way, in seconds; all paint in turns."""
    pictures: dict[str, list[float]] = {name: [] for name in painters}
    steps: dict[str, list[float]] = {name: [] for name in painters}
    for _ in range(rounds):
        for name, paint in painters.items():
            ticks = [time.perf_counter()]
            paint(lambda ticks=ticks: ticks.append(time.perf_counter()))
            pictures[name].append(time.perf_counter() - ticks[0])
            steps[name] += [after - before for before, after in pairwise(ticks[1:])]
    return {name: (min(pictures[name]), min(steps[name])) for name in painters}


def table(name: str, base: velatura.Base, pixels: int, *, steps: int, rounds: int) -> float:
    """Print the rows of one base in one precision, and give velatura's shortest step."""
    painters = {"diffusers": diffusers_painter(base, pixels, steps), "velatura": velatura_painter(base, pixels, steps)}
    images = [np.asarray(paint(lambda: None), dtype=float) for paint in painters.values()]  # which warms both up, too
    seconds = measure_seconds(painters, rounds)
    precision = str(base.dtype).removeprefix("torch.")
    print(f"\n{name}, {precision}, {steps} steps of Euler, guidance {GUIDANCE:g}, {pixels} px")
    print(f"{'':20}{'pictures/s':>12}{'s/step':>10}{'ratio':>8}")
    for label, (picture, step) in seconds.items():
        print(f"{label:20}{1 / picture:12.3f}{step:10.4f}{step / seconds['diffusers'][1]:8.3f}")
    print(f"the pictures differ by {np.abs(images[0] - images[1]).mean():.2f} of 255 on average", flush=True)
    return seconds["velatura"][1]


def main() -> None:
    """Print the tables of the tiny base and of a base of SD1.5's shape."""
    table("tiny base", velatura.tiny(), 64, steps=20, rounds=7)
    if "--tiny" in sys.argv:
        return
    base = sd15()
    seconds = {
        dtype: table(base.name, base.to(dtype=dtype), 512, steps=3, rounds=3)
        for dtype in (torch.float32, torch.bfloat16)
    }
    print(f"\nbfloat16 is {seconds[torch.float32] / seconds[torch.bfloat16]:.2f} times as fast as float32")


if __name__ == "__main__":
    main()
