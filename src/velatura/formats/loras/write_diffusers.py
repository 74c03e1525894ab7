"""Writing of LoRAs as diffusers' save_lora_weights does, for its load_lora_weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from velatura.errors import BadOverlay
from velatura.formats.loras.header import build_header
from velatura.formats.loras.low_rank import MAGNITUDE_KEY, low_ranks_by_path, warn_of_embeddings
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.tensors import write_safetensors

FORMAT_METADATA = {"format": "pt"}  # as save_lora_weights writes it
ALPHA_FIELDS = {"ss_network_alpha", "ss_network_args"}  # left out, because alpha / rank is in the tensors


def write(overlay: Overlay, path: Path) -> None:
    """Write a LoRA or a DoRA in its own precision, by way of a temporary file.

    Embeddings in the LoRA are left out with a warning.

    Args:
        overlay: A LoRA whose layers are all plain LoRA or DoRA, as diffusers reads no others.
        path: The file, which is replaced if it exists.

    Raises:
        BadOverlay: The overlay is not a LoRA, or a layer has another algorithm or magnitudes of columns.
        BadFile: The file cannot be written.
    """
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"a LoRA file of diffusers cannot store a {overlay.kind}: leave the dialect out")
    warn_of_embeddings(overlay, "diffusers")
    tensors: dict[str, Tensor] = {}
    for (part, module), matrices in low_ranks_by_path(overlay, "diffusers").items():
        tensors[f"{part}.{module}.lora_A.weight"] = matrices.down
        tensors[f"{part}.{module}.lora_B.weight"] = matrices.up
        if matrices.magnitudes is not None:
            # transformers, which loads the text encoders' part, asks for the whole name of the parameter
            name = MAGNITUDE_KEY if part == "unet" else f"{MAGNITUDE_KEY}.weight"
            tensors[f"{part}.{module}.{name}"] = matrices.magnitudes
    metadata = {key: value for key, value in build_header(overlay, path.stem).items() if key not in ALPHA_FIELDS}
    write_safetensors(path, tensors, {**metadata, **FORMAT_METADATA})
