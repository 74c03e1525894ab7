"""State dicts of small networks on faces, with weights by a formula.

shapes.json has the names and shapes of the tensors, as the judges' own networks of these widths write them.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
SHAPES: dict[str, dict[str, list[int]]] = json.loads((FOLDER / "shapes.json").read_text("utf-8"))
GFPGAN, CODEFORMER, RETINAFACE = "GFPGAN", "CodeFormer", "RetinaFace"


def formula(shape: list[int], seed: int, size: float = 1.0) -> Tensor:
    """Return values of a shape, of about a size, without regularity that could hide a transposition."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((steps * 12.9898 + seed % 9973).sin() * 437.58 % 2 - 1).float().reshape(shape) * size


def values(name: str, shape: list[int]) -> Tensor:
    """Return the values of a tensor by its name: small enough that layers neither explode nor vanish."""
    seed = zlib.crc32(name.encode())
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith("running_var"):
        return formula(shape, seed).abs() + 0.5
    if "norm" in name or ".bn" in name or (len(shape) == 1 and name.endswith("weight")):
        return formula(shape, seed, 0.3) + (1 if name.endswith("weight") else 0)
    if name.endswith("modulation.bias"):
        return formula(shape, seed, 0.3) + 1
    if "noise" in name or "constant_input" in name or "embed" in name:
        return formula(shape, seed)
    fan_in = math.prod(shape[-3:] if len(shape) == 5 else shape[1:]) if len(shape) > 1 else 4
    # boxes of a sensible size, and scores that differ
    damping = 0.05 if "Head." in name else 1
    return formula(shape, seed, 1.7 * damping / fan_in**0.5)


def make_state(model: str) -> dict[str, Tensor]:
    """Return the tensors of a model as its file holds them."""
    return {name: values(name, shape) for name, shape in SHAPES[model].items()}


def pixels(side: int, *, height: int | None = None) -> Tensor:
    """Return a picture, (1, 3, height, side), from -1 to 1."""
    return formula([1, 3, height or side, side], 5)
