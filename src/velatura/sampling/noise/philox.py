"""Normal numbers as NVIDIA GPUs draw them, computed on the CPU.

The generator is Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), and the normal
numbers come from the Box-Muller transform, as in cuRAND and torch.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Uint64Array = NDArray[np.uint64]  # of which the lower 32 bits count
Counter = tuple[Uint64Array, Uint64Array, Uint64Array, Uint64Array]

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
PHILOX_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ANGLE_UNIT = float(np.float32(2.3283064e-10) * np.float32(6.2831855))  # 2 pi / 2**32 as cuRAND rounds it
LOW_32_BITS, SHIFT_32_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


class Philox:
    """A generator of normal numbers, whose state advances by one at each draw, however many numbers it gives."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._offset = 0

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Return the next normal numbers of a shape, in float32."""
        indices = np.arange(prod(shape), dtype=np.uint64)
        zeros = np.zeros_like(indices)
        first, second, _, _ = _philox_rounds((zeros + np.uint64(self._offset), zeros, indices, zeros), self._seed)
        self._offset += 1
        uniform, angle = (first + 0.5) / 2**32, (second + 0.5) * ANGLE_UNIT
        normal = np.sqrt(-2 * np.log(uniform)) * np.sin(angle)
        return torch.tensor(normal, dtype=torch.float32).view(tuple(shape))


def _philox_rounds(counter: Counter, seed: int) -> Counter:
    """Encrypt counters in ten rounds with the seed as the key."""
    key = (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF))
    a, b, c, d = counter
    for _ in range(PHILOX_ROUNDS):
        left, right = a * PHILOX_MULTIPLIERS[0], c * PHILOX_MULTIPLIERS[1]
        a, b, c, d = (
            right >> SHIFT_32_BITS ^ b ^ key[0],
            right & LOW_32_BITS,
            left >> SHIFT_32_BITS ^ d ^ key[1],
            left & LOW_32_BITS,
        )
        key = ((key[0] + PHILOX_WEYL[0]) & LOW_32_BITS, (key[1] + PHILOX_WEYL[1]) & LOW_32_BITS)
    return a, b, c, d
