"""Recipes by Fooocus in JSON: its scheme "fooocus", and the labels of its log. Its scheme "a1111" is infotext."""

import re
from collections.abc import Iterator, Mapping
from typing import cast

from velatura.sampling.recipe.programs.settings import (
    JsonObject,
    ProgramSettings,
    add_tags,
    model_name,
    overlay_tag,
)

KEYS = frozenset(
    {"adm_guidance", "performance", "prompt_expansion", "full_prompt", "sharpness"}
)  # which others have not

IGNORED = (
    r"base_model_hash|created_by|full_(negative_)?prompt|image_number|metadata_scheme|version|refiner_switch"
    r"|fooocus_v\d_expansion|adaptive_cfg|seed_random|read_wildcards_in_order|disable_\w+|user"
)
NEUTRAL = {"refiner_model": "None", "refiner_swap_method": "joint", "styles": "[]", "vae": "Default (model)"}
LORA_KEYS = re.compile(r"lora(?:_combined)?_\d+|lora_\[(?P<name>.*)\]_weight")
COMMON_PERFORMANCES = {"", "speed", "quality"}  # the others add a LoRA of their own


def infotext_from_fooocus(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate the settings of Fooocus into infotext.

    Args:
        values: The settings, by their keys or by their labels.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type.
    """
    settings = ProgramSettings("Fooocus", _normalize_keys(values), ignored=IGNORED, neutral=NEUTRAL)
    prompt, negative = settings.prompt("prompt"), settings.text("negative_prompt")
    _note_own_ways(settings)
    sampler = settings.sampler_fields(settings.name("sampler"), settings.name("scheduler"))
    fields = {
        **settings.main_fields(sampler, settings.sides("resolution"), size, guidance="guidance_scale"),
        "Model hash": settings.name("base_model_hash"),
        "Model": model_name(settings.text("base_model")) or None,
        "VAE": _read_vae(settings),
        "Clip skip": settings.number("clip_skip"),
        "RNG": "CPU",
    }
    return settings.infotext(add_tags(prompt, _lora_tags(settings, values)), negative, fields)


def _normalize_keys(values: JsonObject) -> JsonObject:
    return {key.strip().lower().replace(" ", "_"): value for key, value in values.items()}


def _note_own_ways(settings: ProgramSettings) -> None:
    """Note what Fooocus does to every picture, and the styles that it adds to the prompt."""
    styles = settings.take("styles")
    expansion = settings.text("prompt_expansion", "fooocus_v2_expansion")
    if styles not in (None, [], "[]"):
        settings.note(f"its styles ({_list_styles(styles)})")
    if expansion:
        settings.note("its expansion of the prompt")
    performance = settings.text("performance")
    if performance.lower() not in COMMON_PERFORMANCES:
        settings.note(f"the LoRA of its performance {performance}")
    own_ways = [
        word for key, word in (("sharpness", "sharpness"), ("adm_guidance", "ADM guidance")) if settings.take(key)
    ]
    if own_ways:
        settings.note(f"its {' and '.join(own_ways)}")


def _list_styles(styles: object) -> str:
    return re.sub(r"[\[\]'\"]", "", str(styles))


def _read_vae(settings: ProgramSettings) -> str | None:
    vae = settings.name("vae")
    return None if vae is None or vae.lower().startswith("default") else vae


def _lora_tags(settings: ProgramSettings, values: JsonObject) -> list[str]:
    """Return tags for LoRAs: a list of lists, or one setting for each, as "name : weight"."""
    found: dict[str, object] = {}
    for value in settings.items("loras"):
        entry = cast("list[object]", value) if isinstance(value, list) else []
        if len(entry) < 2 or not isinstance(entry[0], str):
            raise settings.bad_value("loras", cast("object", value), "a name and a weight")
        found[entry[0]] = entry[1]
    for key, value in _lora_settings(values):
        settings.take(key)
        match = LORA_KEYS.fullmatch(key)
        name, colon, weight = str(value).rpartition(":")
        if match and match["name"]:
            found.setdefault(match["name"], value)
        elif colon:
            found.setdefault(name.strip(), weight)
        else:
            raise settings.bad_value(key, value, 'a name and a weight, as "name : 0.5"')
    loras = {name: weight for name, weight in found.items() if name.strip().lower() != "none"}
    weights = {name: settings.read_number("loras", weight) for name, weight in loras.items()}
    return [overlay_tag(settings, "lora", name, 1 if weight is None else weight) for name, weight in weights.items()]


def _lora_settings(values: JsonObject) -> Iterator[tuple[str, object]]:
    normalized: Mapping[str, object] = _normalize_keys(values)
    yield from ((key, value) for key, value in normalized.items() if LORA_KEYS.fullmatch(key) and value)
