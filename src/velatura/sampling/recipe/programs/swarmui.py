"""Recipes by SwarmUI (`sui_image_params`)."""

import re

from velatura.sampling.recipe.comfyui.prompts import CLOSE, OPEN, split_emphasis, write_emphasis
from velatura.sampling.recipe.programs.settings import (
    JsonObject,
    ProgramSettings,
    add_tags,
    model_name,
    overlay_tag,
)

SETTINGS_KEY = "sui_image_params"
OUTER_IGNORED = r"sui_extra_data|sui_models"  # times and dates, and the hashes of models

IGNORED = (
    r"aspectratio|sidelength|images|batchsize|swarm_version|date|generation_time|prep_time|original_(negative)?prompt"
    r"|used_\w+|nopreviews|donotsave\w*|imageformat|personalnote|wildcardseed\w*|automaticvae|outputintermediateimages"
    r"|saveintermediate\w*|nointernalspecialhandling|webhooks|cfgscale_note|override\w*path\w*|comfyui\w*|internalbackendtype"
    r"|exactbackendid|presets|colordepth|bitdepth"
)
NEUTRAL = {"zeronegative": "false", "refinermethod": "PostApply", "vae": "Automatic"}
# Text behind one of these tags is the prompt of a part of the picture, or of another pass
SECTION_TAGS = re.compile(r"<(segment|region|object|refiner|base|video|videoswap|edit|extend|clear)\b[^<>]*>")
EMBEDDING = re.compile(
    r"\0swarmembed:(?P<raw>[^\0]*)\0end|<embed(?:ding)?:(?P<name>[^<>]*)>|\bembedding:(?P<comfy>[^\s,()]+)"
)
TAG = re.compile(r"<(?P<kind>\w+)(?:\[(?P<option>[^\]]*)\])?(?::(?P<value>[^<>]*))?>")
PLAIN_SQUARE_BRACKETS = re.compile(r"(?<!\\)\[([^\[\]|:]*)\]")
CID = re.compile(r"//cid=\d+")  # SwarmUI numbers the sections of a prompt


def infotext_from_swarmui(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate the settings of SwarmUI into infotext.

    Args:
        values: The metadata, whose settings are in `sui_image_params`.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type, or the prompt is missing.
    """
    outer = ProgramSettings("SwarmUI", values, ignored=OUTER_IGNORED)
    settings = outer.inside("", outer.section(SETTINGS_KEY), ignored=IGNORED, neutral=NEUTRAL)
    prompt, has_emphasis = _translate_emphasis(_translate_prompt(settings, settings.prompt("prompt")))
    negative, has_negative_emphasis = _translate_emphasis(_translate_prompt(settings, settings.text("negativeprompt")))
    clip_stop = settings.number("clipstopatlayer")
    creativity = settings.number("initimagecreativity")
    if creativity is not None or settings.take("initimage") is not None:
        settings.note_init_image()
    vae = settings.name("vae")
    sampler = settings.sampler_fields(settings.name("sampler"), settings.name("scheduler"))
    fields = {
        **settings.main_fields(sampler, settings.sides(), size, guidance="cfgscale"),
        "Model": model_name(settings.text("model")) or None,
        "VAE": vae if vae and vae.lower() != "automatic" else None,
        "Variation seed": settings.number("variationseed"),
        "Variation seed strength": settings.number("variationseedstrength"),
        "Denoising strength": creativity,
        "Clip skip": None if clip_stop is None else abs(int(clip_stop)),
        "Tiling": _read_tiling(settings),
        "RNG": "CPU",
        "Emphasis": "ComfyUI" if has_emphasis or has_negative_emphasis else None,
    }
    return outer.infotext(add_tags(prompt, _lora_tags(settings, prompt)), negative, fields)


def _read_tiling(settings: ProgramSettings) -> bool | None:
    word = settings.text("seamlesstileable").lower()
    if word in {"x-only", "y-only"}:
        settings.note(f"tiling in one direction (seamlesstileable: {word})")
        return None
    return True if word == "true" else None


def _lora_tags(settings: ProgramSettings, prompt: str) -> list[str]:
    """Return tags for the LoRAs in the lists; a LoRA without a weight has 1."""
    names = settings.items("loras")
    weights, text_weights = settings.items("loraweights"), settings.items("loratencweights")
    sections = settings.items("lorasectionconfinement")
    if max(len(weights), len(text_weights)) > len(names):
        raise settings.bad_value("loraweights", weights or text_weights, f"a list of {len(names)}, as loras is")
    if any(str(section) not in {"", "-1", "0"} for section in sections):
        settings.note("LoRAs for a part of the picture (lorasectionconfinement)")
    tags: list[str] = []
    for index, name in enumerate(names):
        weight = _weight_at(settings, weights, index)
        text_weight = _weight_at(settings, text_weights, index) if index < len(text_weights) else weight
        strengths = (weight,) if text_weight == weight else (text_weight, weight)
        if not isinstance(name, str):
            raise settings.bad_value("loras", name, "the name of a LoRA")
        if name.strip() and f"<lora:{model_name(name)}:" not in prompt:
            tags.append(overlay_tag(settings, "lora", name, *strengths))
    return tags


def _weight_at(settings: ProgramSettings, weights: list[object], index: int) -> float | int:
    value = weights[index] if index < len(weights) else 1
    number = settings.read_number("loraweights", value)
    return 1 if number is None else number


def _translate_emphasis(text: str) -> tuple[str, bool]:
    """Return a prompt with its emphasis in our syntax, and whether it has any.

    SwarmUI's backend is ComfyUI: a number inside brackets replaces the emphasis outside them, a bracket that is not
    closed is a letter, and so are square brackets without an alternative.
    """
    text = PLAIN_SQUARE_BRACKETS.sub(r"\\[\1\\]", text)
    parts = split_emphasis(text.replace("\\(", OPEN).replace("\\)", CLOSE))
    written: list[str] = []
    for part in parts:
        words = re.sub(r"[()]", r"\\\g<0>", part.words).replace(OPEN, "\\(").replace(CLOSE, "\\)")
        written.append(write_emphasis(words, part.emphasis))
    return "".join(written), any(part.emphasis != 1 and part.words.strip() for part in parts)


def _translate_prompt(settings: ProgramSettings, text: str) -> str:
    """Translate the tags of SwarmUI's prompts: embeddings, LoRAs, alternation, editing; the others are noted."""
    text = EMBEDDING.sub(lambda match: _embedding_name(next(filter(None, match.groups()), "")), CID.sub("", text))
    section = SECTION_TAGS.search(text)
    if section:
        settings.note(f"the part of the prompt from {section[0]} on")
        text = text[: section.start()]
    unknown: list[str] = []
    previous = ""
    while previous != text:  # inner tags first
        previous = text
        text = TAG.sub(lambda match: _translate_tag(match, unknown), text)
    if unknown:
        settings.note(f"the tags {', '.join(dict.fromkeys(unknown))} in the prompt")
    return text.replace("\1", "<").replace("\2", ">").strip()


def _translate_tag(match: re.Match[str], unknown: list[str]) -> str:
    kind, option, value = match["kind"].lower(), match["option"] or "", match["value"] or ""
    separator = next((mark for mark in ("||", "|", ",") if mark in value), ",")
    options = [part.strip() for part in value.split(separator)]
    if kind == "lora":
        name, *weights = value.split(":")
        return f"\1lora:{':'.join([model_name(name), *weights[:2][::-1]])}\2"
    if kind in {"alternate", "alt"} and len(options) > 1:
        return f"[{'|'.join(options)}]"
    if kind == "fromto" and len(options) == 2 and option:
        return f"[{options[0]}:{options[1]}:{option}]"
    if kind == "break":
        return " BREAK "
    if kind in {"comment", "hypernet"}:
        return "" if kind == "comment" else f"\1{match[0][1:-1]}\2"
    unknown.append(f"<{kind}>")
    return value


def _embedding_name(name: str) -> str:
    return model_name(name).rpartition("/")[2]
