"""Recipes in pictures by ComfyUI, translated into infotext."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from velatura.sampling.recipe.infotext import write_infotext

COMFY_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "uni_pc": "UniPC",
    "lcm": "LCM",
}
COMFY_SCHEDULERS = {
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}

JsonObject = Mapping[str, object]


def infotext_from_comfyui(chunks: Mapping[Any, object], size: tuple[int, int]) -> str | None:
    """Translate the chunk "prompt" of ComfyUI, a graph with exactly one KSampler; others are not understood."""
    nodes = _parse_object(chunks.get("prompt")) or {}
    graph = {key: node for key, value in nodes.items() if (node := _as_object(value)) is not None}
    samplers = [_inputs(node) for node in graph.values() if "KSampler" in str(node.get("class_type"))]
    if len(samplers) != 1:
        return None
    sampler = samplers[0]
    fields = {
        "Steps": sampler.get("steps"),
        "Sampler": COMFY_SAMPLERS.get(str(sampler.get("sampler_name"))),
        "Schedule type": COMFY_SCHEDULERS.get(str(sampler.get("scheduler"))),
        "CFG scale": sampler.get("cfg"),
        "Seed": sampler.get("seed", sampler.get("noise_seed")),
        "Size": f"{size[0]}x{size[1]}",
        "Denoising strength": None if sampler.get("denoise", 1.0) == 1.0 else sampler["denoise"],
        "Model": _find_text(graph, sampler.get("model"), "ckpt_name"),
        "RNG": "CPU",
    }
    prompt, negative = (_find_text(graph, sampler.get(side), "text") for side in ("positive", "negative"))
    return None if prompt is None else write_infotext(prompt, negative or "", fields)


def _find_text(graph: Mapping[str, JsonObject], link: object, field: str) -> str | None:
    """Return the text in a field of the linked node, or of the nearest node upstream that has it."""
    seen_keys: set[str] = set()
    queue = [link]
    while queue:
        current = queue.pop(0)
        key = str(cast("list[object]", current)[0]) if isinstance(current, list) and current else ""
        if key in seen_keys or key not in graph:
            continue
        seen_keys.add(key)
        inputs = _inputs(graph[key])
        if isinstance(text := inputs.get(field), str):
            return text
        queue += [value for value in inputs.values() if isinstance(value, list)]
    return None


def _inputs(node: JsonObject) -> JsonObject:
    return _as_object(node.get("inputs")) or {}


def _parse_object(text: object) -> JsonObject | None:
    try:
        return _as_object(json.loads(text)) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _as_object(value: object) -> JsonObject | None:
    return cast("JsonObject", value) if isinstance(value, dict) else None
