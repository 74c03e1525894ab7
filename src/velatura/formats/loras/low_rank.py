"""LoRAs as programs have them that know no alpha and no core: two matrices a layer, and a DoRA's magnitudes."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from velatura.errors import BadOverlay, VelaturaWarning
from velatura.formats.loras.names import diffusers_path
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.lora import Lora

TWO_MATRIX_ALGORITHMS = {"lora", "dora"}


class LowRankMatrices(NamedTuple):
    """One layer's change, up @ down without a scale, and the lengths of rows that it is to have, if any.

    Those are of shape (out,), of a convolution (1, out, 1, 1), as peft has them.
    """

    down: Tensor
    up: Tensor
    magnitudes: Tensor | None


def warn_of_embeddings(lora: Lora, dialect: str) -> None:
    """Warn of embeddings that go with a LoRA and have no place in a dialect."""
    if lora.bundled_embeddings:
        message = f"{dialect} has no place in a LoRA for its embeddings ({', '.join(lora.bundled_embeddings)[:100]}), left out here"
        warnings.warn(f"{message}: save them by themselves", VelaturaWarning, 3)


def low_ranks_by_path(lora: Lora, dialect: str) -> dict[tuple[str, str], LowRankMatrices]:
    """The changes by the part of a pipeline and the path in it that diffusers has for each layer.

    What no two matrices can say is refused, in words for the dialect that cannot hold it.
    """
    unsupported = sorted({delta.algorithm for delta in lora.layers.values()} - TWO_MATRIX_ALGORITHMS)
    if unsupported:
        raise BadOverlay(f"{dialect} knows no {' and no '.join(unsupported)}: write it in dialect kohya, or bake it")
    return {diffusers_path(layer): low_rank_of(layer, delta, dialect) for layer, delta in lora.layers.items()}


@torch.no_grad()
def low_rank_of(layer: str, delta: Delta, dialect: str) -> LowRankMatrices:
    """One layer's two matrices, alpha over rank in up, a core of Tucker's in down."""
    down, up = (delta.required_tensor(f"lora_{direction}.weight") for direction in ("down", "up"))
    dtype = delta.get_parameter("lora_up.weight").dtype
    core, magnitudes = delta.tensor("lora_mid.weight"), delta.tensor("dora_scale")
    if core is not None:
        down = torch.einsum("abyx,bi->aiyx", core, down.flatten(1))
    if magnitudes is not None and magnitudes.shape[0] != up.shape[0]:
        raise BadOverlay(f"{dialect} has magnitudes of rows only, {layer[:120]} of columns: write it in dialect kohya")
    if magnitudes is not None:
        magnitudes = magnitudes.flatten().to(dtype)
        magnitudes = magnitudes.view(1, -1, 1, 1) if down.ndim == 4 else magnitudes
    return LowRankMatrices(down.to(dtype), (up * delta.scale(up.shape[1])).to(dtype), magnitudes)
