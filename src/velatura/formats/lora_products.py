"""LoRAs as programs have them that know no alpha and no core: two matrices a layer, and a DoRA's magnitudes."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from velatura.errors import BadOverlay, VelaturaWarning
from velatura.formats.lora_names import dotted
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora import Lora

LOW_RANK = {"lora", "dora"}


class LowRank(NamedTuple):
    """One layer's change, up @ down without a scale, and the lengths of rows that it is to have, if any.

    Those are of shape (out,), of a convolution (1, out, 1, 1), as peft has them.
    """

    down: Tensor
    up: Tensor
    magnitudes: Tensor | None


def warn_of_embeddings(lora: Lora, dialect: str) -> None:
    """Warn of embeddings that go with a LoRA and have no place in a dialect."""
    if lora.bundled:
        said = f"{dialect} has no place in a LoRA for its embeddings ({', '.join(lora.bundled)[:100]}), left out here"
        warnings.warn(f"{said}: save them by themselves", VelaturaWarning, 3)


def low_ranks(lora: Lora, dialect: str) -> dict[tuple[str, str], LowRank]:
    """The changes by the part of a pipeline and the path in it that diffusers has for each layer.

    What no two matrices can say is refused, in words for the dialect that cannot hold it.
    """
    strange = sorted({each.algorithm for each in lora.layers.values()} - LOW_RANK)
    if strange:
        raise BadOverlay(f"{dialect} knows no {' and no '.join(strange)}: write it in dialect kohya, or bake it")
    return {dotted(layer): low_rank(layer, delta, dialect) for layer, delta in lora.layers.items()}


@torch.no_grad()
def low_rank(layer: str, delta: Delta, dialect: str) -> LowRank:
    """One layer's two matrices, alpha over rank in up, a core of Tucker's in down."""
    down, up = (delta.of(f"lora_{way}.weight") for way in ("down", "up"))
    precision = delta.get_parameter("lora_up.weight").dtype
    core, lengths = delta.tensor("lora_mid.weight"), delta.tensor("dora_scale")
    if core is not None:
        down = torch.einsum("abyx,bi->aiyx", core, down.flatten(1))
    if lengths is not None and lengths.shape[0] != up.shape[0]:
        raise BadOverlay(f"{dialect} has magnitudes of rows only, {layer[:120]} of columns: write it in dialect kohya")
    if lengths is not None:
        lengths = lengths.flatten().to(precision)
        lengths = lengths.view(1, -1, 1, 1) if down.ndim == 4 else lengths
    return LowRank(down.to(precision), (up * delta.scale(up.shape[1])).to(precision), lengths)
