"""Recipes by InvokeAI: `invokeai_metadata` (version 3 and later), `sd-metadata` (version 2) and `Dream` (version 1)."""

import re
import shlex
from collections.abc import Iterable
from typing import cast

from velatura.errors import BadRecipe
from velatura.sampling.recipe.programs.settings import (
    JsonObject,
    ProgramSettings,
    add_tags,
    model_name,
    overlay_tag,
    parse_object,
)

PROGRAM = "InvokeAI"
PROMPT_KEYS = frozenset({"positive_prompt", "positive_conditioning"})
OTHER_KEYS = frozenset({"app_version", "scheduler", "generation_mode"})

IGNORED = r"app_version|generation_mode|canvas_v2_metadata|_canvas_objects|metadata_version|model_hash|app_id|type|grid"
OUTER_IGNORED = r"model|model_hash|app_id|app_version"
MODEL_IGNORED = r"key|hash|base|type|submodel_type|base_model|model_type"  # of a model, beside its name
NEUTRAL = {
    "cfg_rescale_multiplier": 0,
    "refiner_model": "None",
    "threshold": 0,
    "perlin": 0,
    "facetool_strength": 0,
    "hrf_enabled": "false",
    "positive_style_prompt": "",
}
# The syntax of Compel, which InvokeAI's prompts may use: "word++", "(two words)1.2", ".blend(", ".swap(" and the like
COMPEL = re.compile(r"[\w)\"](\+\+*|--+)(?=[\s,.)]|$)|\)-(?=[\s,]|$)|\)\d|\.(blend|swap|and|attention)\(")
ROUND_BRACKET = re.compile(r"(?<!\\)\(")  # not escaped
TRIGGER = re.compile(r"<(?P<name>[^<>:]+)>")  # an embedding's name
LORA_CALL = re.compile(r"\bwithLora\(\s*(?P<name>[^,()]+?)\s*(?:,\s*(?P<weight>[\d.+-]+)\s*)?\)")
NEGATIVE_WORDS = re.compile(r"\[([^\[\]]*)\]")  # within the prompt of versions 1 and 2
DREAM_KEYS = {
    "-s": "steps",
    "--steps": "steps",
    "-S": "seed",
    "--seed": "seed",
    "-W": "width",
    "--width": "width",
    "-H": "height",
    "--height": "height",
    "-C": "cfg_scale",
    "--cfg_scale": "cfg_scale",
    "-A": "sampler",
    "--sampler": "sampler",
    "-f": "strength",
    "--strength": "strength",
    "-I": "init_image",
    "--init_img": "init_image",
}


def infotext_from_invokeai(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate `invokeai_metadata` into infotext.

    Args:
        values: The settings.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type, or the prompt is missing.
    """
    if not PROMPT_KEYS & set(values):
        raise BadRecipe("the metadata of InvokeAI has no positive_prompt: use a picture as it was saved")
    settings = ProgramSettings(PROGRAM, values, ignored=IGNORED, neutral=NEUTRAL)
    prompt, calls = _translate_prompt(settings, settings.prompt("positive_prompt", "positive_conditioning"))
    negative, _ = _translate_prompt(settings, settings.text("negative_prompt", "negative_conditioning"))
    _read_style_prompts(settings, prompt, negative)
    skipped = settings.number("clip_skip")
    fields = {
        **_shared_fields(settings, "scheduler", ("init_image", "initial_image"), size),
        "Model": _read_model(settings, "model"),
        "VAE": _read_model(settings, "vae"),
        "Clip skip": None if not skipped else int(skipped) + 1,
        "Tiling": _read_tiling(settings),
        "RNG": "GPU" if settings.text("rand_device") not in {"", "cpu"} else "CPU",
    }
    return settings.infotext(add_tags(prompt, [*calls, *_lora_tags(settings)]), negative, fields)


def infotext_from_sd_metadata(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate `sd-metadata` into infotext.

    Args:
        values: The settings.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type, or the prompt is missing.
    """
    outer = ProgramSettings(PROGRAM, values, ignored=OUTER_IGNORED)
    image = outer.section("image")
    if "prompt" not in image:
        raise BadRecipe("the metadata of InvokeAI (sd-metadata) has no prompt: use a picture as it was saved")
    return _infotext_from_image(outer, image, size)


def infotext_from_dream(text: str, size: tuple[int, int]) -> str:
    """Translate the command in the chunk `Dream` into infotext.

    Args:
        text: The command, such as `"a house" -s 50 -S 7 -W 512 -H 512 -C 7.5 -A k_lms`.
        size: Width and height of the picture.

    Raises:
        BadRecipe: The command has no prompt in quotes, or an option has no value.
    """
    match = re.match(r'\s*(?:!?dream>?\s*)?"(?P<prompt>(?:[^"\\]|\\.)*)"(?P<options>.*)', text, re.DOTALL)
    if match is None:
        raise BadRecipe("the command of InvokeAI (Dream) has no prompt in quotes: use a picture as it was saved")
    image: dict[str, object] = {"prompt": re.sub(r"\\(.)", r"\1", match["prompt"])}
    words = _split_options(match["options"])
    while words:
        word = words.pop(0)
        attached = re.fullmatch(r"(-[A-Za-z])(.+)", word)  # as -s50
        if word in DREAM_KEYS:
            image[DREAM_KEYS[word]] = words.pop(0) if words else ""
        elif attached and attached[1] in DREAM_KEYS:
            image[DREAM_KEYS[attached[1]]] = attached[2]
        else:
            has_value = bool(words) and not words[0].startswith("-")
            image[word] = words.pop(0) if has_value else True
    return _infotext_from_image(ProgramSettings(PROGRAM, {}), image, size)


def _split_options(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _infotext_from_image(outer: ProgramSettings, image: JsonObject, size: tuple[int, int]) -> str:
    """Translate the settings of versions 1 and 2, whose prompt has the negative words in brackets.

    Args:
        outer: Settings around those of the picture, with the model.
        image: The settings of the picture.
        size: Width and height of the picture.
    """
    settings = outer.inside("", image, ignored=IGNORED, neutral=NEUTRAL)
    text = _read_weighted_prompts(settings)
    negative = ", ".join(words.strip() for words in NEGATIVE_WORDS.findall(text) if words.strip())
    prompt, calls = _translate_prompt(settings, NEGATIVE_WORDS.sub("", text).strip())
    fields = {
        **_shared_fields(settings, "sampler", ("init_image", "init_image_path"), size),
        "Model": outer.name("model_weights"),
        "Tiling": True if settings.flag("seamless") else None,
        "RNG": "GPU",
    }
    return outer.infotext(add_tags(prompt, calls), negative, fields)


def _shared_fields(
    settings: ProgramSettings, sampler: str, init_images: tuple[str, ...], size: tuple[int, int]
) -> dict[str, object]:
    """Return the fields that all versions have, and note an image that the picture started from.

    Args:
        settings: The settings.
        sampler: Name of the setting with the sampler.
        init_images: Names of the settings with an image to start from.
        size: Width and height of the picture.
    """
    strength = settings.number("strength")
    if strength is not None or settings.take(*init_images) is not None:
        settings.note_init_image()
    sampler_fields = settings.sampler_fields(settings.name(sampler), None)
    return {
        **settings.main_fields(sampler_fields, settings.sides(), size, guidance="cfg_scale"),
        "Denoising strength": strength,
    }


def _read_weighted_prompts(settings: ProgramSettings) -> str:
    """Return the prompt, which is a text or a list of texts with weights."""
    value = settings.take("prompt")
    if not isinstance(value, list):
        return settings.text("prompt")
    parts = cast("list[object]", value)
    texts: list[str] = []
    for number, part in enumerate(parts, 1):
        values = cast("JsonObject", part) if isinstance(part, dict) else {"prompt": part}
        entry = settings.inside(f"prompt {number}", values)
        texts.append(entry.text("prompt"))
        if entry.number("weight") not in {None, 1}:
            settings.note("parts of the prompt with their own weights")
    return " ".join(texts)


def _translate_prompt(settings: ProgramSettings, text: str) -> tuple[str, list[str]]:
    """Return a prompt with names of embeddings as plain words, and the tags for LoRAs that it calls."""
    calls = [overlay_tag(settings, "lora", call["name"], call["weight"] or 1) for call in LORA_CALL.finditer(text)]
    text = TRIGGER.sub(lambda match: match["name"], LORA_CALL.sub("", text)).strip()
    if COMPEL.search(text):
        settings.note("InvokeAI's emphasis in the prompt, such as word++ or (words)1.2: write (words:1.2)")
    elif ROUND_BRACKET.search(text):
        settings.note("round brackets in the prompt, which InvokeAI (Compel) reads without emphasis: remove them")
    return text, calls


def _read_style_prompts(settings: ProgramSettings, prompt: str, negative: str) -> None:
    """Note prompts for the second text encoder of SDXL that differ from the others."""
    for key, other in (("positive_style_prompt", prompt), ("negative_style_prompt", negative)):
        style = settings.text(key)
        if style and style != other:
            settings.note(f"another prompt for the second text encoder ({key})")


def _read_tiling(settings: ProgramSettings) -> bool | None:
    directions = [name for name in ("seamless_x", "seamless_y") if settings.flag(name)]
    if len(directions) == 1:
        settings.note(f"tiling in one direction ({directions[0]})")
    return True if len(directions) == 2 else None


def _read_model(settings: ProgramSettings, key: str) -> str | None:
    """Return the name of a model, which is a text or an object."""
    value = settings.take(key)
    if isinstance(value, dict):
        name = _name_of(settings.inside(key, cast("JsonObject", value), ignored=MODEL_IGNORED))
        if name is None:
            raise settings.bad_value(key, cast("object", value), "a model with a name")
        return name
    return settings.name(key)


def _lora_tags(settings: ProgramSettings) -> Iterable[str]:
    for number, entry in enumerate(settings.items("loras"), 1):
        if (parse_object(entry) or {}).get("is_enabled") is False:
            continue
        lora = settings.inside(f"lora {number}", entry, ignored="id|is_enabled")
        name = _name_of(lora.inside("model", lora.section("model", "lora"), ignored=MODEL_IGNORED))
        if name is None:
            raise settings.bad_value("loras", entry, "a LoRA with a name")
        weight = lora.number("weight")
        yield overlay_tag(settings, "lora", name, 1 if weight is None else weight)


def _name_of(model: ProgramSettings) -> str | None:
    name = model.take("name", "model_name")
    return model_name(name) if isinstance(name, str) else None
