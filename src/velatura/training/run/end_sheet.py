"""Sheet of strengths at the end of a run, and the overlay's effect at strength 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from velatura.base.base import Base
from velatura.errors import VelaturaError, ignore_warnings, warn
from velatura.overlays.attach import attach
from velatura.overlays.effect import Effect
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, make_pictures
from velatura.sampling.image_grid import draw_grid
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.captions import caption_name
from velatura.training.noise import isolate_random_state
from velatura.training.run.end_tune import tune_result
from velatura.training.run.log import atomic_write
from velatura.training.run.recorded_base import base_location
from velatura.training.run.report import OnStage, Run, Stage
from velatura.training.run.verdict import little_was_learned, overpowers, sheet_command

if TYPE_CHECKING:
    from velatura.datasets.folder import Example
    from velatura.training.plan import Plan
    from velatura.training.trainer import Trainer

SHEET_STRENGTHS = (0, 0.5, 1, 1.5)
MAX_SHEET_PROMPTS = 2


@dataclass(frozen=True)
class EndSheet:
    """Sheet of pictures and effect of a finished overlay.

    Attributes:
        path: The sheet, None if none was painted.
        effect: Relative change at strength 1, None for kinds whose change is not measured.
    """

    path: Path | None = None
    effect: float | None = None


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
    path = run.folder / "strengths.png" if is_sheet_due(base, plan.end_sheet) else None
    if on_stage and path:
        on_stage(Stage("painting strengths", 0, 1))

    def look() -> EndSheet:
        with isolate_random_state(base.device):
            return paint_end_sheet(base, run.overlay, prompts, plan.seed, path=path, image=trainer.preview_image)

    sheet = trainer.processes.run_on_main(look)
    location = base_location(base.opened_from, base.name, base.open_options)
    command = sheet_command(verdict.kind, run.file, prompts[0], location, base.open_options)
    verdict = replace(
        verdict,
        effect=sheet.effect,
        little_learned=little_was_learned(verdict.validation_before, verdict.validation_after, sheet.effect),
        overpowers=overpowers(sheet.effect),
        pictures=(*filter(None, [sheet.path]), *verdict.pictures),
        sheet_command="" if sheet.path else command,
    )
    return tune_result(replace(run, verdict=verdict), trainer, on_stage)


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
) -> EndSheet:
    """Paint an overlay at several strengths, or measure its effect by a single step.

    Nothing that fails here fails the run, whose overlay is written: it is warned of.

    Args:
        base: The base, without the overlay.
        overlay: The finished overlay.
        prompts: Prompts without the overlay's tag; the first ones are rows of the sheet.
        seed: Seed of all pictures.
        path: Where the sheet goes; None: no sheet.
        image: The image that a pix2pix model edits.
    """
    try:
        recipes = [Recipe(prompt=prompt, seed=seed) for prompt in dict.fromkeys(prompts)][:MAX_SHEET_PROMPTS]
        with ignore_warnings():  # an overlay that changes nothing is in the verdict
            if path is None:
                return EndSheet(None, _measure_effect(base, overlay, recipes[0], image))
            return _paint(base, overlay, recipes, path, image)
    except (VelaturaError, RuntimeError, OSError) as error:  # RuntimeError: no memory left on a GPU, among others
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warn(f"the overlay is written, but its sheet of strengths was not painted: {reason}")
        return EndSheet()
    except KeyboardInterrupt as interruption:
        interruption.add_note("the run is finished and its overlay is written; only the sheet of strengths is missing")
        raise


def mean_change(effect: Effect) -> float | None:
    """Return the mean over all layers of the changes that an effect measured, None if it measured none."""
    changes = [
        ((width.k + width.v) / 2, width.layers)
        for width in effect.widths
        if width.k is not None and width.v is not None
    ]
    changes += [(output.change, output.layers) for output in effect.outputs if output.change is not None]
    layer_count = sum(layers for _, layers in changes)
    return sum(change * layers for change, layers in changes) / layer_count if layer_count else None


def _paint(base: Base, overlay: Overlay, recipes: Sequence[Recipe], path: Path, image: InitImage | None) -> EndSheet:
    columns: list[list[Picture]] = []
    effect: float | None = None
    for strength in SHEET_STRENGTHS:
        if strength == 0:
            columns.append(make_pictures(base, recipes, image))
            continue
        with attach(base, overlay, strength) as attachment:
            columns.append(make_pictures(base, recipes, image))
            effect = mean_change(attachment.effect) if strength == 1 else effect
    images = [[picture.image for picture in row] for row in zip(*columns, strict=True)]
    labels = [f"strength {strength:g}" for strength in SHEET_STRENGTHS]
    with atomic_write(path) as temp_path:
        draw_grid(images, labels, [recipe.prompt for recipe in recipes]).save(temp_path)
    return EndSheet(path, effect)


def _measure_effect(base: Base, overlay: Overlay, recipe: Recipe, image: InitImage | None) -> float | None:
    """Measure the effect in one step without guidance: two evaluations of the UNet at most."""
    with attach(base, overlay) as attachment:
        make_pictures(base, [recipe.replace(steps=1, guidance=1.0)], image)
        return mean_change(attachment.effect)
