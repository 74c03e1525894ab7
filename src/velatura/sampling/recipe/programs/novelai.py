"""Recipes by NovelAI: settings in JSON, and emphasis by braces."""

import re

from velatura.errors import BadRecipe
from velatura.sampling.recipe.programs.settings import JsonObject, ProgramSettings

CLIP_SKIP, ENSD = 2, 31337  # constants of NovelAI that its pictures do not record

IGNORED = (
    r"n_samples|hide_debug_overlay|signed_hash|request_type|version|legacy\w*|prompt|deliberate_euler_ancestral_bug"
    r"|prefer_brownian|explike_fine_detail|add_original_image|cfg_sched_eligibility|minimize_sigma_inf|stream"
    r"|(v4_)?(negative_)?prompt|uncond_per_vibe|wonky_vibe_correlation|params_version|qualityToggle|ucPreset"
)
PROMPT_IGNORED = r"use_coords|use_order|legacy_uc"  # of the prompts of characters, and of an older encoding
NEUTRAL = {
    "uncond_scale": 1,
    "cfg_rescale": 0,
    "skip_cfg_above_sigma": "None",
    "skip_cfg_below_sigma": 0,
    "controlnet_strength": 1,
    "dynamic_thresholding_percentile": 0.999,
    "dynamic_thresholding_mimic_scale": 10,
    "noise": 0,
    "strength": 0,
}
EMPHASIS_STEP = 1.05  # of each brace; a bracket divides by it
NUMERIC_EMPHASIS = re.compile(r"-?\d+(\.\d+)?::")
SCHEDULES = {"native": None}  # the schedule of the model itself


def infotext_from_novelai(values: JsonObject, description: str, size: tuple[int, int]) -> str:
    """Translate the settings of NovelAI into infotext.

    Args:
        values: The settings, from the text `Comment`.
        description: The text `Description`, which holds the prompt.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type, or the prompt is missing.
    """
    settings = ProgramSettings("NovelAI", values, ignored=IGNORED, neutral=NEUTRAL)
    prompt = _read_prompt(settings, "v4_prompt") or settings.text("prompt") or description
    negative = _read_prompt(settings, "v4_negative_prompt") or settings.text("uc")
    settings.take("uc")
    if not prompt and not values:
        raise BadRecipe("the metadata of NovelAI has no prompt: use a picture as it was saved")
    schedule = settings.name("noise_schedule")
    if settings.flag("sm") or settings.flag("sm_dyn"):
        settings.note("SMEA")
    sampler = settings.sampler_fields(settings.name("sampler"), SCHEDULES.get(schedule or "native", schedule))
    fields = {
        **settings.main_fields(sampler, settings.sides(), size, guidance="scale"),
        "Clip skip": CLIP_SKIP,
        "ENSD": ENSD,
    }
    return settings.infotext(_translate(settings, prompt), _translate(settings, negative), fields)


def _read_prompt(settings: ProgramSettings, key: str) -> str:
    """Return the main caption of a prompt of version 4; captions of characters are noted."""
    prompt = settings.inside(key, settings.section(key), ignored=PROMPT_IGNORED)
    caption = prompt.inside("caption", prompt.section("caption"))
    if caption.items("char_captions"):
        settings.note(f"the prompts of characters ({key})")
    return caption.text("base_caption")


def _translate(settings: ProgramSettings, text: str) -> str:
    """Translate braces and brackets into emphasis of A1111; parentheses of NovelAI are plain characters."""
    if NUMERIC_EMPHASIS.search(text):
        settings.note("emphasis by numbers, such as 1.2::words::")
    if not re.search(r"[{}\[\]()]", text):
        return text
    if not _is_balanced(text):
        settings.note("braces or brackets that are not closed")
        return text
    parts: list[str] = []
    for character in re.sub(r"(?<!\\)([()])", r"\\\1", text):
        if character in "{[":
            parts.append("(")
        elif character in "}]":
            factor = EMPHASIS_STEP if character == "}" else 1 / EMPHASIS_STEP
            parts.append(f":{factor:.4g})")
        else:
            parts.append(character)
    return "".join(parts)


def _is_balanced(text: str) -> bool:
    open_marks: list[str] = []
    for character in text:
        if character in "{[":
            open_marks.append("}" if character == "{" else "]")
        elif character in "}]" and (not open_marks or open_marks.pop() != character):
            return False
    return not open_marks
