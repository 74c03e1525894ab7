"""Sheet of strengths at the end of a run, and the overlay's effect on what is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from velatura.base.base import Base
from velatura.errors import BadFile, VelaturaError, ignore_warnings, warn
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, make_pictures
from velatura.sampling.image_grid import draw_grid
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.captions import caption_name
from velatura.training.noise import isolate_random_state
from velatura.training.run.end_tune import caption_word, tune_result
from velatura.training.run.log import atomic_write
from velatura.training.run.prompt_effect import PromptEffect, measure_effect
from velatura.training.run.recorded_base import base_location
from velatura.training.run.report import OnStage, Run, Stage
from velatura.training.run.stored_verdict import write_verdict
from velatura.training.run.verdict import little_was_learned, overpowers, sheet_command

if TYPE_CHECKING:
    from velatura.datasets.folder import Example
    from velatura.training.plan import Plan
    from velatura.training.trainer import Trainer

SHEET_STRENGTHS = (0, 0.5, 1, 1.5)
MAX_SHEET_PROMPTS = 2


class EndSheet(NamedTuple):
    """Sheet of pictures and effect of a finished overlay.

    Attributes:
        path: The sheet, None if none was painted.
        effect: The effect at strength 1, None if it could not be measured.
        milder: If it overpowers at 1, the highest lower strength at which it does not, if there is one.
    """

    path: Path | None = None
    effect: PromptEffect | None = None
    milder: float | None = None


def look_at_result(run: Run, trainer: Trainer, prompts: Sequence[str], on_stage: OnStage | None) -> Run:
    """Paint the finished overlay, which is written already, and complete the run's verdict.

    Args:
        run: The finished run.
        trainer: What trained it; its overlay is detached.
        prompts: Prompts of the sheet, see `sheet_prompts`.
        on_stage: Called before the sheet is painted.
    """
    base, plan, verdict = trainer.base, trainer.plan, run.verdict
    assert verdict is not None
    _keep_verdict(run, trainer)  # an end while it paints leaves what the losses say
    path = run.folder / "strengths.png" if is_sheet_due(base, plan.end_sheet) else None
    if on_stage and path:
        on_stage(Stage("painting strengths", 0, 1))

    called_by = caption_word(plan, run.overlay)

    def look() -> EndSheet:
        with isolate_random_state(base.device):
            return paint_end_sheet(
                base, run.overlay, prompts, plan.seed, path=path, image=trainer.preview_image, called_by=called_by
            )

    sheet = trainer.processes.run_on_main(look)
    effect = sheet.effect
    location = base_location(base.opened_from, base.name, base.open_options)
    command = sheet_command(verdict.kind, run.file, prompts[0], location, base.open_options)
    verdict = replace(
        verdict,
        effect=effect and effect.change,
        prompt_left=effect and effect.prompt_left,
        little_learned=little_was_learned(
            verdict.validation_before, verdict.validation_after, effect and effect.change
        ),
        overpowers=overpowers(effect and effect.prompt_left),
        milder_strength=sheet.milder,
        pictures=(*filter(None, [sheet.path]), *verdict.pictures),
        sheet_command="" if sheet.path else command,
    )
    run = replace(run, verdict=verdict)
    _keep_verdict(run, trainer)
    tuned_run = tune_result(run, trainer, on_stage)
    if tuned_run is not run:
        _keep_verdict(tuned_run, trainer)
    return tuned_run


def _keep_verdict(run: Run, trainer: Trainer) -> None:
    """Write the verdict into the run folder; what fails here does not fail the run, whose overlay is written."""
    verdict = run.verdict
    assert verdict is not None

    def keep() -> None:
        try:
            write_verdict(verdict, run.folder)
        except BadFile as error:
            warn(f"the overlay is written, but its verdict is not kept: {error}")

    trainer.processes.run_on_main(keep)


def sheet_prompts(
    plan: Plan, overlay: Overlay, examples: Sequence[Example], preview_recipes: Sequence[Recipe]
) -> list[str]:
    """Return the prompts of the sheet: those of the previews, else the first captions in the plan's template."""
    if plan.preview_prompt and preview_recipes:
        return [recipe.prompt for recipe in preview_recipes]
    template = plan.caption_template(caption_name(overlay))
    captions = list(dict.fromkeys(example.caption for example in examples))
    return [template.draw(caption, Random(0)) for caption in captions[:MAX_SHEET_PROMPTS]]


def is_sheet_due(base: Base, end_sheet: bool | None) -> bool:
    """Return True if a plan asks for a sheet, or says nothing and painting is cheap: on the tiny base or a GPU."""
    return end_sheet if end_sheet is not None else base.family.name == "tiny" or base.device.type != "cpu"


def paint_end_sheet(
    base: Base,
    overlay: Overlay,
    prompts: Sequence[str],
    seed: int,
    *,
    path: Path | None,
    image: InitImage | None = None,
    called_by: str = "",
) -> EndSheet:
    """Paint an overlay at several strengths, and measure its effect.

    Nothing that fails here fails the run, whose overlay is written: it is warned of.

    Args:
        base: The base, without the overlay.
        overlay: The finished overlay.
        prompts: Prompts without the overlay's tag; the first ones are rows of the sheet.
        seed: Seed of all pictures.
        path: Where the sheet goes; None: no sheet.
        image: The image that a pix2pix model edits.
        called_by: Words that call the overlay, as its training captions had them.
    """
    effect: PromptEffect | None = None
    milder: float | None = None
    try:
        effect, milder = measure_effect(base, overlay, called_by)
        if path is not None:
            recipes = [Recipe(prompt=prompt, seed=seed) for prompt in dict.fromkeys(prompts)][:MAX_SHEET_PROMPTS]
            with ignore_warnings():  # an overlay that changes nothing is in the verdict
                _paint(base, overlay, recipes, path, image)
        return EndSheet(path, effect, milder)
    except (VelaturaError, RuntimeError, OSError) as error:  # RuntimeError: no memory left on a GPU, among others
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warn(f"the overlay is written, but its {_describe_missing(effect, path)}: {reason}")
        return EndSheet(None, effect, milder)
    except KeyboardInterrupt as interruption:
        missing = _describe_missing(effect, path)
        interruption.add_note(f"the run is finished and its overlay is written, but its {missing}")
        raise


def _describe_missing(effect: PromptEffect | None, path: Path | None) -> str:
    """Say what is not done of measuring the effect and painting the sheet, which a plan may leave out."""
    if effect is not None:
        return "sheet of strengths was not painted"
    return "effect was not measured" + (" and its sheet of strengths was not painted" if path is not None else "")


def _paint(base: Base, overlay: Overlay, recipes: Sequence[Recipe], path: Path, image: InitImage | None) -> None:
    columns: list[list[Picture]] = []
    for strength in SHEET_STRENGTHS:
        if strength == 0:
            columns.append(make_pictures(base, recipes, image))
            continue
        with attach(base, overlay, strength):
            columns.append(make_pictures(base, recipes, image))
    images = [[picture.image for picture in row] for row in zip(*columns, strict=True)]
    labels = [f"strength {strength:g}" for strength in SHEET_STRENGTHS]
    with atomic_write(path) as temp_path:
        draw_grid(images, labels, [recipe.prompt for recipe in recipes]).save(temp_path)
