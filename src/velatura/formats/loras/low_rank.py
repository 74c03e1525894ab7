"""LoRAs as two matrices for every layer and a DoRA's magnitudes, for programs that know neither alpha nor a core."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from velatura.errors import BadOverlay, warn
from velatura.formats.loras.names import diffusers_path
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora

TWO_MATRIX_ALGORITHMS = {"lora", "dora"}
MAGNITUDE_KEY = "lora_magnitude_vector"  # diffusers' and peft's name of a DoRA's magnitudes


class LowRankMatrices(NamedTuple):
    """Change of one layer: up @ down is added to its weight, without a scale.

    Attributes:
        down: (rank, in features), or of a convolution (rank, in channels, height, width).
        up: (out features, rank), or of a convolution (out channels, rank, 1, 1).
        magnitudes: Lengths that the rows of the changed weight get (DoRA), or None: (out features,), or of a
            convolution (1, out channels, 1, 1), as peft has them.
    """

    down: Tensor
    up: Tensor
    magnitudes: Tensor | None


def warn_of_embeddings(lora: Lora, dialect: str) -> None:
    """Warn that a dialect leaves out the embeddings in a LoRA, if there are any."""
    if lora.bundled_embeddings:
        names = ", ".join(lora.bundled_embeddings)[:100]
        warn(
            f"{dialect} cannot store the embeddings of a LoRA ({names}), so they are left out: save them in files of "
            "their own"
        )


def low_ranks_by_path(lora: Lora, dialect: str) -> dict[tuple[str, str], LowRankMatrices]:
    """Convert every layer to two matrices.

    Args:
        lora: The LoRA, all of whose layers must be plain LoRA or DoRA.
        dialect: The dialect to be written, for messages.

    Returns:
        The matrices by the part of diffusers' pipeline and the layer's path in it.

    Raises:
        BadOverlay: A layer has another algorithm or magnitudes of columns, or diffusers has no name for it.
    """
    unsupported = sorted({delta.algorithm for delta in lora.layers.values()} - TWO_MATRIX_ALGORITHMS)
    if unsupported:
        raise BadOverlay(f"{dialect} cannot store {' and '.join(unsupported)}: write it in dialect kohya, or bake it")
    return {diffusers_path(layer): low_rank_of(layer, delta, dialect) for layer, delta in lora.layers.items()}


@torch.no_grad()
def low_rank_of(layer: str, delta: Delta, dialect: str) -> LowRankMatrices:
    """Convert one layer to two matrices: alpha / rank goes into up, and the core of a Tucker decomposition into down.

    Args:
        layer: Name of the layer, for messages.
        delta: The layer's change, a plain LoRA or a DoRA.
        dialect: The dialect to be written, for messages.

    Raises:
        BadOverlay: The magnitudes are of columns.
    """
    down, up = (delta.required_tensor(f"lora_{direction}.weight") for direction in ("down", "up"))
    dtype = delta.get_parameter("lora_up.weight").dtype
    core, magnitudes = delta.tensor("lora_mid.weight"), delta.tensor("dora_scale")
    if core is not None:
        down = torch.einsum("abyx,bi->aiyx", core, down.flatten(1))  # (rank, in channels, height, width)
    if magnitudes is not None and magnitudes.shape[0] != up.shape[0]:
        raise BadOverlay(
            f"{dialect} stores magnitudes of rows, and {layer[:120]} has those of columns: write it in dialect kohya"
        )
    if magnitudes is not None:
        magnitudes = magnitudes.flatten().to(dtype)
        magnitudes = magnitudes.view(1, -1, 1, 1) if down.ndim == 4 else magnitudes
    return LowRankMatrices(down.to(dtype), (up * delta.scale(up.shape[1])).to(dtype), magnitudes)
