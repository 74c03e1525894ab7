"""A plan as it is printed: first the few choices that matter most, then all others in groups, with what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from velatura.cli.training_options import CAPTION_PANEL, OUTPUT_PANEL, TRAINING_PANEL

if TYPE_CHECKING:
    from velatura.training.plan import Plan

FIRST_FIELDS = (
    "learning_rate",
    "optimizer",
    "batch_size",
    "accumulation",
    "template",
    "caption_dropout",
    "snapshot_every",
)
FIELD_GROUPS = {
    TRAINING_PANEL: (
        *("text_rate", "word_rate", "schedule", "warmup", "cycles", "weight_decay", "gradient_norm", "ema"),
        *("pixels", "shape", "precision", "checkpointing", "seed"),
    ),
    "What is made small": (
        *("loss", "huber_threshold", "huber_schedule", "min_snr", "debiased", "noise_offset", "pyramid_noise"),
        *("input_perturbation", "velocity_as_noise", "noise_as_velocity", "zero_terminal_snr"),
        *("masks", "class_weight", "latents"),
    ),
    CAPTION_PANEL: ("shuffle_tags", "tag_dropout", "keep_tags"),
    OUTPUT_PANEL: (
        *("keep_last", "keep_every", "validation_pictures", "validation_folder", "rescues", "rescue_factor"),
        *("loss_limit", "preview_every", "preview_prompt", "preview_seeds", "cache", "a1111", "tensorboard"),
    ),
}


def plan_lines(plan: Plan, *, is_full: bool) -> Iterator[str]:
    """A line for each field, by the name that --set knows; whole: those too that are as they always are."""
    yield f"{'steps':21}{_steps_text(plan)}"
    for field in FIRST_FIELDS:
        yield f"{field:21}{_field_line(plan, field)}"
    for group, fields in FIELD_GROUPS.items():
        shown = [field for field in fields if is_full or getattr(plan, field) != type(plan).model_fields[field].default]
        if shown:
            yield f"{group}:" if is_full else f"{group}, besides:"
        yield from (f"  {field:19}  {_field_line(plan, field)}" for field in shown)


def _field_line(plan: Plan, field: str) -> str:
    """The value of a field, and what it means."""
    value = getattr(plan, field)
    text = "none" if value is None else " | ".join(str(value).splitlines())
    return f"{text:14}  {type(plan).model_fields[field].description}"


def _steps_text(plan: Plan) -> str:
    end = plan.rates().end
    return f"{end}" if end == plan.steps else f"{end}, where the rate ends, not {plan.steps}"
