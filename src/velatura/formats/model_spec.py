"""Stability's ModelSpec 1.0.1: the fields by which any program can tell what a safetensors file is."""

from __future__ import annotations

from velatura.base.families import Family

LDM_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"  # what the tensors are named after
ARCHITECTURE_BY_FAMILY = {
    ("SD1", "epsilon"): "stable-diffusion-v1",
    ("SD1", "v_prediction"): "stable-diffusion-v1",
    ("SD2", "epsilon"): "stable-diffusion-v2-512",
    ("SD2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("SDXL", "epsilon"): "stable-diffusion-xl-v1-base",
    ("SDXL", "v_prediction"): "stable-diffusion-xl-v1-base",
}
MODEL_SPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word, ModelSpec's


def model_spec_fields(family: Family, title: str, *, kind: str = "") -> dict[str, str]:
    """The fields of a base, or of an overlay of a kind for such bases; no date, which would change the bytes."""
    architecture = ARCHITECTURE_BY_FAMILY.get((family.name, family.prediction), f"velatura-{family.name}")
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (architecture, kind))),
        "implementation": LDM_IMPLEMENTATION,
        "title": title,
        "resolution": f"{family.default_pixels}x{family.default_pixels}",
        "prediction_type": MODEL_SPEC_PREDICTIONS[family.prediction],
    }
    return {f"modelspec.{key}": value for key, value in fields.items() if value}
