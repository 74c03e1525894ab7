"""Recipes by Draw Things, whose XMP holds JSON, and by Civitai's generator, whose EXIF holds JSON."""

import html
import re
from typing import cast

from velatura.sampling.recipe.programs.settings import (
    JsonObject,
    ProgramSettings,
    add_tags,
    model_name,
    overlay_tag,
    parse_object,
)

KEYS = frozenset({"c", "uc", "seed_mode"})
XMP_COMMENT = "exif:UserComment"
IGNORED = (
    r"hires_fix|v2|profile|preserve_original_after_inpaint|mask_blur|mask_blur_outset|batch_count|batch_size|name"
    r"|version|tiled_\w+|upscaler_scale"
)
NEUTRAL = {
    "sharpness": 0,
    "shift": 1,
    "strength": 1,
    "hires_fix": "false",
    "refiner_start": 1,
    "upscaler": "",
    "guidance_embed": 3.5,
    "image_guidance": 1.5,
    "aesthetic_score": 6,
    "negative_aesthetic_score": 2.5,
    "zero_negative_prompt": "false",
    "clip_weight": 1,
}
# How a seed becomes noise: as torch on the CPU, or as on an NVIDIA GPU
SEED_MODES = {"torch cpu compatible": "CPU", "nvidia gpu compatible": "NV"}
SAMPLER_ENDINGS = {" trailing": "SGM Uniform", " ays": "Align Your Steps", " karras": "Karras"}

CIVITAI_KEYS = frozenset({"extraMetadata", "extra", "resource-stack"})
CIVITAI_GRAPH_IGNORED = r"\d+|extra|extraMetadata|resource-stack\S*"  # nodes, and lists of the same resources
CIVITAI_IGNORED = (
    r"workflowId|remixOfId|process|engine|quantity|baseModel|nsfw|draft|transformations|priority|sourceImage"
)


def comment_in_xmp(xmp: str) -> str | None:
    """Return the text of exif:UserComment in XMP, or None."""
    element = xmp.find(f"<{XMP_COMMENT}")
    if element >= 0:
        start, end = xmp.find(">", element) + 1, xmp.find(f"</{XMP_COMMENT}>", element)
        text = re.sub(r"</?rdf:[^<>]*>", "", xmp[start:end]) if 0 < start <= end else ""
    else:
        start = xmp.find(f"{XMP_COMMENT}=") + len(f"{XMP_COMMENT}=")
        quote = xmp[start : start + 1]
        end = xmp.find(quote, start + 1) if XMP_COMMENT in xmp and quote in {"'", '"'} else -1
        text = xmp[start + 1 : end] if end >= 0 else ""
    return html.unescape(text).strip() or None


def infotext_from_draw_things(values: JsonObject, size: tuple[int, int]) -> str:
    """Translate the settings of Draw Things into infotext.

    Args:
        values: The settings.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type.
    """
    settings = ProgramSettings("Draw Things", values, ignored=IGNORED, neutral=NEUTRAL)
    seed_mode = settings.text("seed_mode")
    noise = SEED_MODES.get(seed_mode.lower())
    if noise is None and seed_mode:
        settings.note(f"its seed mode {seed_mode!r}, by which the noise differs")
    strength = settings.number("strength")
    skip = settings.number("clip_skip")
    fields = {
        **settings.main_fields(_sampler_fields(settings), settings.sides("size"), size, guidance="scale"),
        "Model": model_name(settings.text("model")) or None,
        "Denoising strength": None if strength == 1 else strength,
        "Clip skip": None if skip is None else max(int(skip), 1),
        "RNG": noise or "CPU",
    }
    if fields["Denoising strength"] is not None:
        settings.note_init_image()
    return settings.infotext(add_tags(settings.prompt("c"), _lora_tags(settings)), settings.text("uc"), fields)


def infotext_from_civitai(values: JsonObject, size: tuple[int, int]) -> str | None:
    """Translate the settings that Civitai's generator writes beside its graph into infotext.

    Args:
        values: The graph, with the settings in `extraMetadata`.
        size: Width and height of the picture.

    Returns:
        The infotext, or None without such settings.

    Raises:
        BadRecipe: A value has the wrong type.
    """
    metadata = parse_object(values.get("extraMetadata"))
    if metadata is None:
        return None
    graph = ProgramSettings("Civitai's generator", values, ignored=CIVITAI_GRAPH_IGNORED)
    settings = graph.inside("", metadata, ignored=CIVITAI_IGNORED)
    for resource in settings.items("resources"):
        version = cast("JsonObject", resource).get("modelVersionId") if isinstance(resource, dict) else None
        strength = cast("JsonObject", resource).get("strength") if isinstance(resource, dict) else None
        settings.note(
            f"the resource with model version {version}" + (f" at {strength}" if strength is not None else "")
        )
    seed = settings.number("seed")
    sampler = settings.sampler_fields(settings.name("sampler"), settings.name("scheduler"))
    fields = {
        **settings.main_fields(sampler, settings.sides(), size, guidance="cfgScale"),
        "Seed": _graph_seed(values) if seed is None else seed,
        "Denoising strength": settings.number("denoise"),
        "Clip skip": settings.number("clipSkip"),
        "RNG": "CPU",
    }
    return graph.infotext(settings.prompt("prompt"), settings.text("negativePrompt"), fields)


def _graph_seed(graph: JsonObject) -> object:
    """Return the seed of the graph's only sampler."""
    inputs = [
        cast("JsonObject", cast("JsonObject", node).get("inputs"))
        for node in graph.values()
        if isinstance(node, dict) and isinstance(cast("JsonObject", node).get("inputs"), dict)
    ]
    seeds = [node["seed"] for node in inputs if isinstance(node.get("seed"), int)]
    return seeds[0] if len(seeds) == 1 else None


def _sampler_fields(settings: ProgramSettings) -> dict[str, object]:
    sampler = settings.name("sampler")
    for ending, scheduler in SAMPLER_ENDINGS.items():
        if sampler and sampler.lower().endswith(ending):
            return settings.sampler_fields(sampler[: -len(ending)], scheduler)
    return settings.sampler_fields(sampler, None)


def _lora_tags(settings: ProgramSettings) -> list[str]:
    tags: list[str] = []
    for number, entry in enumerate(settings.items("lora", "loras"), 1):
        lora = settings.inside(f"lora {number}", entry, neutral={"mode": "all"})
        name, weight = lora.name("model", "file"), lora.number("weight")
        if name is None:
            raise settings.bad_value("lora", entry, "a LoRA with its model")
        tags.append(overlay_tag(settings, "lora", name, 1 if weight is None else weight))
    return tags
