"""Recipes in pictures by NovelAI and ComfyUI, translated into infotext."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from velatura.sampling.recipe.comfyui import infotext_from_comfyui
from velatura.sampling.recipe.infotext import write_infotext

NOVELAI_SAMPLERS = {
    "k_euler_ancestral": "Euler a",
    "k_euler": "Euler",
    "k_lms": "LMS",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2s_ancestral": "DPM++ 2S a",
    "k_dpmpp_sde": "DPM++ SDE",
    "ddim": "DDIM",
    "plms": "PLMS",
}
NOVELAI_CLIP_SKIP, NOVELAI_ENSD = 2, 31337  # constants of NovelAI that its pictures do not record

JsonObject = Mapping[str, object]


def infotext_from_chunks(chunks: Mapping[Any, object], size: tuple[int, int]) -> str | None:
    """Translate the text chunks of a PNG by NovelAI or ComfyUI into infotext.

    Args:
        chunks: The chunks by name, as Pillow's `image.info`.
        size: Width and height of the picture.

    Returns:
        The infotext, or None if the chunks do not tell how the picture was made.
    """
    if chunks.get("Software") == "NovelAI":
        return _from_novelai(chunks, size)
    return infotext_from_comfyui(chunks, size) if "prompt" in chunks else None


def _from_novelai(chunks: Mapping[Any, object], size: tuple[int, int]) -> str | None:
    settings = _parse_object(chunks.get("Comment"))
    if settings is None:
        return None
    fields = {
        "Steps": settings.get("steps"),
        "Sampler": NOVELAI_SAMPLERS.get(str(settings.get("sampler")), "Euler a"),
        "CFG scale": settings.get("scale"),
        "Seed": settings.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Clip skip": NOVELAI_CLIP_SKIP,
        "ENSD": NOVELAI_ENSD,
    }
    return write_infotext(str(chunks.get("Description", "")), str(settings.get("uc", "")), fields)


def _parse_object(text: object) -> JsonObject | None:
    try:
        return _as_object(json.loads(text)) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _as_object(value: object) -> JsonObject | None:
    return cast("JsonObject", value) if isinstance(value, dict) else None
