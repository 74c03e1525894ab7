"""State dicts of small upscalers under the names that each training program writes, with weights by a formula."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

FEATURES, GROWTH = 4, 32
FIRST, BSRGAN, REAL_ESRGAN = "first", "bsrgan", "real-esrgan"


def formula(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return values of a shape, small enough that layers neither explode nor vanish."""
    count = math.prod(shape)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 20
    return (torch.arange(count, dtype=torch.float64) * (0.7 + 0.01 * seed) + seed).sin().float().view(
        shape
    ) / fan_in**0.5


def rrdb_state(names: str, *, blocks: int = 1, doublings: int = 2, channels: int = 3) -> dict[str, Tensor]:
    """Return the tensors of an ESRGAN under the names of its first files, BSRGAN's or Real-ESRGAN's."""
    dense = {
        FIRST: "model.1.sub.{}.RDB{}.conv{}.0",
        BSRGAN: "RRDB_trunk.{}.RDB{}.conv{}",
        REAL_ESRGAN: "body.{}.rdb{}.conv{}",
    }[names]
    first, trunk, doubled, larger, last = {
        FIRST: (
            "model.0",
            f"model.1.sub.{blocks}",
            "model.{three}",
            f"model.{doublings * 3 + 2}",
            f"model.{doublings * 3 + 4}",
        ),
        BSRGAN: ("conv_first", "trunk_conv", "upconv{number}", "HRconv", "conv_last"),
        REAL_ESRGAN: ("conv_first", "conv_body", "conv_up{number}", "conv_hr", "conv_last"),
    }[names]
    layers = {first: (FEATURES, channels)}
    for block in range(blocks):
        for rdb in (1, 2, 3):
            for conv in range(1, 6):
                out = GROWTH if conv < 5 else FEATURES
                layers[dense.format(block, rdb, conv)] = (out, FEATURES + (conv - 1) * GROWTH)
    layers[trunk] = (FEATURES, FEATURES)
    for number in range(1, doublings + 1):
        layers[doubled.format(three=3 * number, number=number)] = (FEATURES, FEATURES)
    layers |= {larger: (FEATURES, FEATURES), last: (3, FEATURES)}
    state: dict[str, Tensor] = {}
    for seed, (layer, (out, into)) in enumerate(layers.items()):
        state[f"{layer}.weight"] = formula((out, into, 3, 3), seed)
        state[f"{layer}.bias"] = formula((out,), seed + 1000)
    return state


def compact_state(scale: int, *, convolutions: int = 2) -> dict[str, Tensor]:
    """Return the tensors of a compact network of Real-ESRGAN."""
    channels = [3, *[FEATURES] * (convolutions + 1), 3 * scale**2]
    state: dict[str, Tensor] = {}
    for number, (into, out) in enumerate(pairwise(channels)):
        state[f"body.{2 * number}.weight"] = formula((out, into, 3, 3), number)
        state[f"body.{2 * number}.bias"] = formula((out,), number + 1000)
        if number <= convolutions:
            state[f"body.{2 * number + 1}.weight"] = formula((out,), number + 2000)
    return state


def pixels() -> Tensor:
    """Return a picture, (1, 3, 4, 8), from 0 to 1."""
    return formula((1, 3, 4, 8), 5) * formula((1,), 0).new_tensor(96).sqrt() / 2 + 0.5


STATES = {
    "first files": rrdb_state(FIRST),
    "first files, 2x": rrdb_state(FIRST, doublings=1, blocks=2),
    "BSRGAN": rrdb_state(BSRGAN),
    "Real-ESRGAN": rrdb_state(REAL_ESRGAN, blocks=2),
    "Real-ESRGAN, 2x": rrdb_state(REAL_ESRGAN, channels=12),
    "compact": compact_state(4),
    "compact, 1x": compact_state(1),
}
