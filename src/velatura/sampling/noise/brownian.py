"""A Brownian path between two noise levels, any two points of which can be asked for in any order.

It gives the same noise as the BrownianTree of torchsde, which k-diffusion draws the noise of its SDE samplers from.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from torch import Tensor

SeededRandn = Callable[[int], Tensor]  # a seed -> normal numbers

SIGMA_DIGITS = 6  # decimals to which noise levels are rounded before they are compared
ENTROPY_POOL_SIZE = 24  # words of entropy that numpy mixes a seed from


class BrownianTree:
    """A random path from one noise level to another.

    Its increments are normal, with the distance of the two levels as their variance.
    """

    def __init__(self, low: float, high: float, seed: int, randn: SeededRandn) -> None:
        """Draw the path's value at its upper end.

        Args:
            low, high: The noise levels where the path starts and ends.
            seed: The seed of the whole path.
            randn: A function that draws normal numbers of one picture's shape from a seed.
        """
        self._low, self._high = round(low, SIGMA_DIGITS), round(high, SIGMA_DIGITS)
        self._seed = seed
        self._randn = randn
        self._end_value = (
            randn(int(np.random.SeedSequence(seed, pool_size=ENTROPY_POOL_SIZE).generate_state(1)[0]))
            * (high - low) ** 0.5
        )
        self._value_at = lru_cache(maxsize=4)(self._compute_value)  # a step starts where the last one ended

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Return the increment of the path from one level to the next; levels outside the path count as its ends."""
        return self._value_at(self._clamp(sigma_next)) - self._value_at(self._clamp(sigma))

    def _clamp(self, sigma: float) -> float:
        return round(min(max(sigma, self._low), self._high), SIGMA_DIGITS)

    def _compute_value(self, sigma: float) -> Tensor:
        """Compute the value of the path at a level, halving the interval around it until the level is reached."""
        low, high, increment = self._low, self._high, self._end_value
        start_value, branch, depth = increment * 0, 0, 0
        while low < sigma < high:
            middle = round((low + high) / 2, SIGMA_DIGITS)
            left_increment = self._bridge(increment, middle - low, high - middle, (branch, depth))
            branch, depth = 2 * branch, depth + 1
            if sigma <= middle:
                high, increment = middle, left_increment
            else:
                low = middle
                start_value = start_value + left_increment
                increment = increment - left_increment
                branch += 1
        return start_value if sigma <= low else start_value + increment

    def _bridge(self, increment: Tensor, left_length: float, right_length: float, node: tuple[int, int]) -> Tensor:
        """Draw the increment over the left part of an interval whose whole increment is known (a Brownian bridge)."""
        seed = np.random.SeedSequence(self._seed, spawn_key=node, pool_size=ENTROPY_POOL_SIZE).generate_state(1)[0]
        length = left_length + right_length
        return (
            increment * (left_length / length) + self._randn(int(seed)) * (left_length * right_length / length) ** 0.5
        )
