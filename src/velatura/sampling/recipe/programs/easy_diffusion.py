"""Recipes in settings by plain names: Easy Diffusion, and programs that use the names of diffusers."""

import re

from velatura.sampling.recipe.programs.settings import (
    JsonObject,
    ProgramSettings,
    add_tags,
    model_name,
    overlay_tag,
)

# By labels, as the files beside pictures have them, and by keys
LABELS = {
    "guidance_scale": "guidance_scale",
    "steps": "num_inference_steps",
    "sampler": "sampler_name",
    "stable_diffusion_model": "use_stable_diffusion_model",
    "vae_model": "use_vae_model",
    "hypernetwork_model": "use_hypernetwork_model",
    "lora_model": "use_lora_model",
    "lora_strength": "lora_alpha",
    "seamless_tiling": "tiling",
    "embedding_models": "use_embeddings_model",
    "use_upscaling": "use_upscale",
    "face_correction": "use_face_correction",
}
KEYS = frozenset({"use_stable_diffusion_model", "stable_diffusion_model", "sampler_name", "used_random_seed"})
DIFFUSERS_KEYS = frozenset({"num_inference_steps", "guidance_scale"})

IGNORED = (
    r"used_random_seed|num_outputs|vram_usage_level|stream_\w+|show_only_filtered_image|block_nsfw|output_\w+|session_id"
    r"|metadata_output_format|active_tags|inactive_tags|original_prompt|use_embeddings_model|request_id|save_to_disk_path"
    r"|clip_skip_enabled|enable_vae_tiling|software|title|created|date|version|use_cpu|full_precision|render_device"
    r"|upscale_amount|latent_upscaler_steps|model_hash|quality_tags|add_quality_tags|sdxl_style"
)
NEUTRAL = {
    "tiling": "none",
    "use_upscale": "None",
    "use_face_correction": "None",
    "preserve_init_image_color_profile": "False",
}
TILINGS = {"xy": True, "true": True, "none": None, "false": None}


def infotext_from_plain_settings(values: JsonObject, program: str, size: tuple[int, int]) -> str:
    """Translate settings by the names of Easy Diffusion or diffusers into infotext.

    Args:
        values: The settings.
        program: Name of the program, for messages.
        size: Width and height of the picture.

    Raises:
        BadRecipe: A value has the wrong type.
    """
    settings = ProgramSettings(program, _normalize_keys(values), ignored=IGNORED, neutral=NEUTRAL)
    strength = settings.number("prompt_strength", "strength")
    if settings.take("init_image") is not None:
        settings.note_init_image()
    elif strength is not None and program == "Easy Diffusion":
        strength = None  # written for every picture
    skip = settings.take("clip_skip")
    tiling = settings.text("tiling").lower()
    if tiling in {"x", "y"}:
        settings.note(f"tiling in one direction ({tiling})")
    sampler = settings.sampler_fields(settings.name("sampler_name", "scheduler"), settings.name("scheduler_name"))
    fields = {
        **settings.main_fields(
            sampler, settings.sides("resolution"), size, steps="num_inference_steps", guidance="guidance_scale"
        ),
        "Model": _read_model(settings, "use_stable_diffusion_model", "model"),
        "VAE": _read_model(settings, "use_vae_model"),
        "Denoising strength": strength,
        "Clip skip": _read_clip_skip(settings, skip),
        "Tiling": TILINGS.get(tiling),
        "RNG": "CPU" if program == "Easy Diffusion" else None,
    }
    prompt = add_tags(settings.prompt("prompt"), _overlay_tags(settings))
    return settings.infotext(prompt, settings.text("negative_prompt"), fields)


def _normalize_keys(values: JsonObject) -> JsonObject:
    keys = {key: re.sub(r"\s+", "_", key.strip().lower()) for key in values}
    return {LABELS.get(keys[key], keys[key]): value for key, value in values.items()}


def _read_model(settings: ProgramSettings, *keys: str) -> str | None:
    value = settings.take(*keys)
    if isinstance(value, dict):
        settings.note(f"{keys[-1]}, which is not a name")
        return None
    name = settings.name(*keys)
    return model_name(name) if name else None


def _read_clip_skip(settings: ProgramSettings, value: object) -> int | None:
    """Return the clip skip: Easy Diffusion has a switch for the last layer but one."""
    word = str(value).strip().lower()
    if value is None or word in {"false", "0"}:
        return None
    if word == "true":
        return 2
    number = settings.read_number("clip_skip", value)
    return None if number is None else int(number)


def _overlay_tags(settings: ProgramSettings) -> list[str]:
    tags = [_hypernetwork_tag(settings)]
    names = settings.items("use_lora_model")
    strengths = settings.items("lora_alpha")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise settings.bad_value("use_lora_model", name, "the name of a LoRA")
        strength = settings.read_number("lora_alpha", strengths[index]) if index < len(strengths) else None
        if name.strip().lower() not in {"", "none"}:
            tags.append(overlay_tag(settings, "lora", name, 1 if strength is None else strength))
    return tags


def _hypernetwork_tag(settings: ProgramSettings) -> str:
    name = settings.name("use_hypernetwork_model")
    strength = settings.number("hypernetwork_strength")
    if name is None:
        return ""
    return overlay_tag(settings, "hypernet", name, 1 if strength is None else strength)
