"""One trial: train, measure the loss at eight noise levels, paint, and let the judge look at the pictures."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

import velatura
from tools.drawing.paint import paint
from tools.drawing.scene import Scene, caption
from tools.tiny_base.data import LABELS, unseen_scene
from tools.tiny_base.export import style_scenes
from tools.tiny_base.judge import Judge, picture_bytes, verdicts
from velatura.datasets.folder import read_dataset
from velatura.overlays.overlay import Overlay
from velatura.sampling.image_grid import draw_grid
from velatura.training.data.cache import encode_dataset
from velatura.training.loss import denoising_errors
from velatura.training.validation import validation_noise

from .factors import BATCH_SIZE, OVERLAY_SEED, PARAMETERS, TIMESTEPS, Sheet, Trial

SAMPLER, STEPS, GUIDANCE = "DDIM", 8, 7.0  # DPM++ 2M burns colours in so few steps
PROMPTS = 32  # pictures of what was learned; half as many of other things after learning a subject
FIRST_PROMPT_SEED = 50_000_000
CLASS_PICTURES = 16
NOISE_LEVELS = [62, 187, 312, 437, 562, 687, 812, 937]  # middles of eighths of the schedule
SHEET_SEED, SHEET_PIXELS = 7, 96
MORE_STYLES = {"oil": 13, "halftone": 17, "mosaic": 19}  # seeds of drawings that the package does not contain


def paint_sheet(base: velatura.Base, work: Path, sheet: Sheet) -> Image:
    """Paint the prompts of a sheet without an overlay and with each of its trials, which are trained if need be."""
    labels = ["no overlay", *(f"{trial.arm.parameters}, {trial.steps} steps" for trial in sheet.trials)]
    rows = [[_paint(base, prompt)] for prompt in sheet.prompts]
    for trial in sheet.trials:
        with velatura.attach(base, trained_overlay(base, trial, work)):
            for row, prompt in zip(rows, sheet.prompts, strict=True):
                row.append(_paint(base, prompt))
    return draw_grid(rows, labels, list(sheet.prompts))


def _paint(base: velatura.Base, prompt: str) -> Image:
    recipe = velatura.Recipe(prompt=prompt, seed=SHEET_SEED, steps=20, guidance=GUIDANCE, sampler=SAMPLER)
    return velatura.generate(base, recipe).image.resize((SHEET_PIXELS, SHEET_PIXELS))


def run_trial(base: velatura.Base, judge: Judge, trial: Trial, work: Path) -> dict[str, Any]:
    """Train, measure and judge; return the record of the results."""
    pictures = task_folder(base, trial, work)
    losses_before = noise_level_losses(base, new_overlay(base, trial), pictures)
    started = time.process_time()
    overlay = trained_overlay(base, trial, work)
    train_seconds = time.process_time() - started
    losses_after = noise_level_losses(base, overlay, pictures)
    started = time.process_time()
    shares = judge_overlay(base, judge, overlay, trial.task, call="trial, " if "word" in trial.arm.parameters else "")
    return {
        **trial.key,
        "shares": {name: round(share, 3) for name, share in shares.items()},
        "before": losses_before,
        "after": losses_after,
        "train_seconds": round(train_seconds, 1),
        "paint_seconds": round(time.process_time() - started, 1),
    }


def new_overlay(base: velatura.Base, trial: Trial) -> Overlay:
    """Return the trial's overlay before its training."""
    return PARAMETERS[trial.arm.parameters].make(base, OVERLAY_SEED + trial.seed)


def trained_overlay(base: velatura.Base, trial: Trial, work: Path) -> Overlay:
    """Return the trial's overlay after its training; its weights are kept in the work folder."""
    overlay, file = new_overlay(base, trial), work / "overlays" / f"{file_name(trial)}.pt"
    if file.exists():
        overlay.load_state_dict(torch.load(file, weights_only=True))
        return overlay
    overlay = train(base, overlay, trial, task_folder(base, trial, work), work / "runs" / file_name(trial))
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(overlay.state_dict(), file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
    return overlay


def file_name(trial: Trial) -> str:
    """Return a name of the trial that is good for a file."""
    return re.sub(r"[^\w.]+", "-", f"{trial.task} {trial.arm} {trial.steps} {trial.seed}")


def train(base: velatura.Base, overlay: Overlay, trial: Trial, pictures: Path, run: Path) -> Overlay:
    """Train by the trial's plan into a run folder, which is removed."""
    parameters = PARAMETERS[trial.arm.parameters]
    has_word = "word" in trial.arm.parameters
    plan = velatura.Plan(
        steps=trial.steps,
        learning_rate=parameters.rate * trial.arm.rate_factor,
        word_rate=1e-2 if has_word else None,
        schedule="cosine",
        batch_size=BATCH_SIZE,
        seed=trial.seed,
        caption_dropout=0.0 if trial.task == "robot" else 0.3,
        template="[name], [filewords]" if has_word else "captions",
        validation_pictures=0,
        snapshot_every=0,
        end_sheet=False,
        cache=False,
    ).replace(**TIMESTEPS[trial.arm.timesteps])
    return train_with_plan(base, overlay, plan, pictures, run)


def train_with_plan(base: velatura.Base, overlay: Overlay, plan: velatura.Plan, pictures: Path, run: Path) -> Overlay:
    """Train into a run folder, which is removed."""
    shutil.rmtree(run, ignore_errors=True)
    trained = velatura.train(base, overlay, pictures, plan, out=run).overlay
    shutil.rmtree(run)
    return trained


def task_folder(base: velatura.Base, trial: Trial, work: Path) -> Path:
    """Return the folder of training pictures, with class pictures where the arm has prior preservation."""
    folder = style_folder(trial.task, work)
    if not trial.arm.prior:
        return folder
    prior_folder = work / "pictures" / f"{trial.task}-prior"
    if not prior_folder.exists():
        with _new_folder(prior_folder) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
            _paint_class_pictures(base, new / "reg")
    return prior_folder


def style_folder(task: str, work: Path) -> Path:
    """Return the folder of a task's pictures: the package's, or drawings that are kept in the work folder."""
    if task not in MORE_STYLES:
        return velatura.tiny_pictures(task)
    folder = work / "pictures" / task
    if not folder.exists():
        _draw_style(task, MORE_STYLES[task], folder)
    return folder


def _draw_style(style: str, seed: int, folder: Path) -> None:
    with _new_folder(folder) as new:
        for i, scene in enumerate(style_scenes(style, seed)):
            paint(scene).save(new / f"{i:02}.png")
            (new / f"{i:02}.txt").write_text(caption(scene, Random(scene.seed), style_word="") + "\n")


@contextmanager
def _new_folder(folder: Path) -> Generator[Path]:
    """Yield a folder that gets its name when it is complete, so that a stop leaves none half written."""
    new = folder.with_name(folder.name + "-incomplete")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    new.rename(folder)


def _paint_class_pictures(base: velatura.Base, folder: Path) -> None:
    """Paint what the base knows, by captions of its own, since it has no robots that are like one another."""
    folder.mkdir()
    scenes = [unseen_scene(FIRST_PROMPT_SEED + 10_000 + i) for i in range(CLASS_PICTURES)]
    texts = [caption(scene, Random(scene.seed), style_word="") for scene in scenes]
    recipes = [velatura.Recipe(prompt=text, seed=i, steps=12, sampler=SAMPLER) for i, text in enumerate(texts)]
    for i, picture in enumerate(velatura.generate_many(base, recipes)):
        picture.image.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(texts[i] + "\n")


@torch.no_grad()
def noise_level_losses(base: velatura.Base, overlay: Overlay, pictures: Path) -> list[float]:
    """Return the squared error at each of the noise levels, over eight pictures with fixed noise."""
    plan = velatura.Plan(cache=False, class_weight=0)
    cache = encode_dataset(base, overlay, read_dataset(pictures), plan)
    rows = torch.arange(BATCH_SIZE) % len(cache.latents)
    losses: list[float] = []
    with velatura.attach(base, overlay):
        cond = cache.captions.encode_for_validation(rows)
        for level in NOISE_LEVELS:
            noise = torch.stack([validation_noise(level * 100 + i, cache.latents.shape[1:]) for i in range(BATCH_SIZE)])
            timesteps = torch.full((BATCH_SIZE,), level)
            losses.append(denoising_errors(base, cache.latents[rows], cond, noise, timesteps).mean().item())
    return [round(loss, 5) for loss in losses]


def judge_overlay(
    base: velatura.Base,
    judge: Judge,
    overlay: Overlay,
    task: str,
    *,
    call: str = "",
    strength: float = 1.0,
    count: int = PROMPTS,
    steps: int = STEPS,
) -> dict[str, float]:
    """Return shares of pictures: what was learned, and what was kept.

    Args:
        base, judge: The tiny base, and the classifier.
        overlay: What was trained.
        task: What it learned: a style, or "robot".
        call: Words before the prompts, for an overlay that is called by a name.
        strength: Its strength.
        count: Prompts; after a subject half as many prompts of other things.
        steps: Sampling steps.
    """
    scenes = [unseen_scene(FIRST_PROMPT_SEED + i) for i in range(count)]
    if task != "robot":
        seen = look(base, judge, overlay, [call + text for text in prompts_of(scenes)], strength, steps)
        return style_shares(seen, scenes, task)
    robots = [replace(scene, subject="robot", colour="red", count=1, size=0.34) for scene in scenes]
    prompts = [call + text.replace("red robot", "robot") for text in prompts_of(robots)]
    others = [unseen_scene(FIRST_PROMPT_SEED + 1000 + i) for i in range(count // 2)]
    seen = look(base, judge, overlay, prompts + prompts_of(others), strength, steps)
    return subject_shares(seen[:count], robots) | kept_shares(seen[count:], others)


def prompts_of(scenes: list[Scene]) -> list[str]:
    """Return a caption of each scene that names no style."""
    return [caption(scene, Random(scene.seed), style_word="") for scene in scenes]


def look(
    base: velatura.Base, judge: Judge, overlay: Overlay, prompts: list[str], strength: float, steps: int
) -> Tensor:
    """Paint prompts with an overlay, and return the judge's labels (prompts, 4)."""
    with velatura.attach(base, overlay, strength):
        return look_at_prompts(base, judge, prompts, steps)


def look_at_prompts(base: velatura.Base, judge: Judge, prompts: list[str], steps: int = STEPS) -> Tensor:
    """Paint prompts with what is attached, and return the judge's labels (prompts, 4)."""
    recipes = [
        velatura.Recipe(prompt=prompt, steps=steps, guidance=GUIDANCE, sampler=SAMPLER, seed=i)
        for i, prompt in enumerate(prompts)
    ]
    pictures = torch.stack([picture_bytes(picture.image) for picture in velatura.generate_many(base, recipes)])
    return verdicts(judge, pictures)


def style_shares(seen: Tensor, scenes: list[Scene], style: str) -> dict[str, float]:
    """Return the share in the style, those with subject, place and colour as asked, and with style and subject."""
    right = _right(seen, scenes)
    in_style = seen[:, 3] == LABELS["style"].index(style)
    return {
        "learned": _share(in_style),
        "subject": _share(right["subject"]),
        "place": _share(right["place"]),
        "colour": _share(right["colour"]),
        "score": _share(in_style & right["subject"]),
    }


def subject_shares(seen: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Return the share that shows the subject, in its colour, in the place asked for, and subject and place."""
    right = _right(seen, scenes)
    return {
        "learned": _share(right["subject"]),
        "colour": _share(right["colour"]),
        "place": _share(right["place"]),
        "score": _share(right["subject"] & right["place"]),
    }


def kept_shares(seen: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Return the share of other prompts that are still answered: subject and place as asked."""
    right = _right(seen, scenes)
    return {"kept": _share(right["subject"] & right["place"])}


def _right(seen: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
    asked = {
        field: torch.tensor([LABELS[field].index(getattr(scene, field)) for scene in scenes])
        for field in ("subject", "colour", "place")
    }
    return {field: seen[:, list(LABELS).index(field)] == labels for field, labels in asked.items()}


def _share(flags: Tensor) -> float:
    return flags.float().mean().item()
