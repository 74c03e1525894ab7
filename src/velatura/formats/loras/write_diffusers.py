"""LoRAs as diffusers' save_lora_weights writes them and load_lora_weights reads them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.formats.loras.header import build_header
from velatura.formats.loras.low_rank import low_ranks_by_path, warn_of_embeddings
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

FORMAT_METADATA = {"format": "pt"}
ALPHA_FIELDS = {"ss_network_alpha", "ss_network_args"}  # which are in the tensors here
MAGNITUDE_KEY = "lora_magnitude_vector"


def write(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or a DoRA in its own precision, at once or not at all; diffusers knows no others."""
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"diffusers' LoRA files hold no {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "diffusers")
    tensors: dict[str, Tensor] = {}
    for (part, module), matrices in low_ranks_by_path(overlay, "diffusers").items():
        tensors[f"{part}.{module}.lora_A.weight"] = matrices.down
        tensors[f"{part}.{module}.lora_B.weight"] = matrices.up
        if matrices.magnitudes is not None:
            # transformers, which loads those of text towers, asks for them by their whole name
            name = MAGNITUDE_KEY if part == "unet" else f"{MAGNITUDE_KEY}.weight"
            tensors[f"{part}.{module}.{name}"] = matrices.magnitudes
    metadata = {key: value for key, value in build_header(overlay, path.stem).items() if key not in ALPHA_FIELDS}
    write_safetensors(path, tensors, {**metadata, **FORMAT_METADATA})
