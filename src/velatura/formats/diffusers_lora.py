"""LoRAs as diffusers' save_lora_weights writes them and load_lora_weights reads them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.formats.lora_header import header_of
from velatura.formats.lora_products import low_ranks, warn_of_embeddings
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

FORMAT = {"format": "pt"}
SCALES = {"ss_network_alpha", "ss_network_args"}  # which are in the tensors here
MAGNITUDES = "lora_magnitude_vector"


def save(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or a DoRA in its own precision, at once or not at all; diffusers knows no others."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"diffusers' LoRA files hold no {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "diffusers")
    tensors: dict[str, Tensor] = {}
    for (part, module), each in low_ranks(overlay, "diffusers").items():
        tensors[f"{part}.{module}.lora_A.weight"] = each.down
        tensors[f"{part}.{module}.lora_B.weight"] = each.up
        if each.magnitudes is not None:
            # transformers, which loads those of text towers, asks for them by their whole name
            name = MAGNITUDES if part == "unet" else f"{MAGNITUDES}.weight"
            tensors[f"{part}.{module}.{name}"] = each.magnitudes
    told = {key: each for key, each in header_of(overlay, path.stem).items() if key not in SCALES}
    write_safetensors(path, tensors, {**told, **FORMAT})
