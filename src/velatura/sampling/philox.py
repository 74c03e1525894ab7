"""Random numbers as an NVIDIA GPU draws them, anywhere: torch.randn on CUDA, for one generator.

Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", Philox4x32-10, whose letters these are; turned into
normal numbers by Box and Muller, of whose pair the GPU keeps the sine.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]  # of which the lower 32 bits count

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
TURN = float(np.float32(2.3283064e-10) * np.float32(6.2831855))  # 2 pi / 2**32 as cuRAND rounds it
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Philox:
    """A generator of normal numbers: each draw moves on by one, however many numbers it gives."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next normal numbers, in float32."""
        places = np.arange(prod(shape), dtype=np.uint64)
        none = np.zeros_like(places)
        first, second, _, _ = _mixed((none + np.uint64(self._draws), none, places, none), self._seed)
        self._draws += 1
        share, angle = (first + 0.5) / 2**32, (second + 0.5) * TURN
        normal = np.sqrt(-2 * np.log(share)) * np.sin(angle)
        return torch.tensor(normal, dtype=torch.float32).view(tuple(shape))


def _mixed(counter: tuple[Words, Words, Words, Words], seed: int) -> tuple[Words, Words, Words, Words]:
    """What the counters become in ten rounds under a key, which is the seed."""
    key = (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF))
    a, b, c, d = counter
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = right >> HALF ^ b ^ key[0], right & LOW, left >> HALF ^ d ^ key[1], left & LOW
        key = ((key[0] + WEYL[0]) & LOW, (key[1] + WEYL[1]) & LOW)
    return a, b, c, d
