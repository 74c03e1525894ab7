"""Parts of a model and the error measures by which the reports of merging, baking and extracting tell about them."""

from __future__ import annotations

from torch import Tensor

UNET_PARTS = {"in": "UNet in", "mid": "UNet mid", "out": "UNet out"}  # by the side of a UNet's blocks
TEXT_PART, VAE_PART = "text", "VAE"
MODEL_PARTS = (TEXT_PART, *UNET_PARTS.values(), VAE_PART)  # in the order of reports
WHOLE_MODEL = "whole"  # the last row of a report: all parts together

# Modules of diffusers' UNet before its middle block; what follows the middle block counts as "UNet out".
_UNET_INPUT_MODULES = ("unet.down_blocks.", "unet.conv_in.", "unet.time_embedding.", "unet.add_embedding.")


def part_of_module(name: str) -> str:
    """Return the part that a tensor belongs to, by its name in diffusers: unet.conv_in.weight, text_encoder...."""
    if not name.startswith("unet."):
        return TEXT_PART
    if name.startswith("unet.mid_block."):
        return UNET_PARTS["mid"]
    return UNET_PARTS["in" if name.startswith(_UNET_INPUT_MODULES) else "out"]


def squared_norm(tensor: Tensor) -> float:
    """Return the sum of squares of a tensor, computed in float64."""
    return float(tensor.double().square().sum())


def relative_error(squared_error: float, squared_total: float) -> float:
    """Return the size of an error relative to the size of the whole, from their squares; 0 if the whole is 0."""
    return (squared_error / squared_total) ** 0.5 if squared_total else 0.0


def format_ranks(ranks: tuple[int, int]) -> str:
    """Return "rank 4" or "ranks 2 to 8" for the least and the largest rank."""
    low, high = ranks
    return f"rank {low}" if low == high else f"ranks {low} to {high}"
