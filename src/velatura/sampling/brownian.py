"""A random path between two levels of noise, which is the same whatever steps are taken along it.

Levy's construction: the middle of an interval is drawn around the mean of its ends, then the middles of its halves, as
far down as is asked for (Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations", section 4). Seeds
of the intervals, and how finely they are told apart, are torchsde's, whose trees k-diffusion draws from: the same seed
gives the same path.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from torch import Tensor

SeededRandn = Callable[[int], Tensor]  # a seed -> normal numbers

SIGMA_DIGITS = 6  # of a level, below which two are the same
ENTROPY_POOL_SIZE = 24  # words of entropy that numpy mixes a seed from


class BrownianTree:
    """A path from one level to another; its differences are normal, with the distance of the levels for variance."""

    def __init__(self, low: float, high: float, seed: int, randn: SeededRandn) -> None:
        self._low, self._high = round(low, SIGMA_DIGITS), round(high, SIGMA_DIGITS)
        self._seed = seed
        self._randn = randn
        self._end_value = (
            randn(int(np.random.SeedSequence(seed, pool_size=ENTROPY_POOL_SIZE).generate_state(1)[0]))
            * (high - low) ** 0.5
        )
        self._value_at = lru_cache(maxsize=4)(self._compute_value)  # a step starts where the last one ended

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The path's way from here to there; levels beyond its ends are its ends."""
        return self._value_at(self._clamp(sigma_next)) - self._value_at(self._clamp(sigma))

    def _clamp(self, sigma: float) -> float:
        return round(min(max(sigma, self._low), self._high), SIGMA_DIGITS)

    def _compute_value(self, sigma: float) -> Tensor:
        """Where the path is at a level, by halving the interval that it lies in."""
        low, high, increment = self._low, self._high, self._end_value
        start_value, branch, depth = increment * 0, 0, 0
        while low < sigma < high:
            middle = round((low + high) / 2, SIGMA_DIGITS)
            left_increment = self._bridge(increment, middle - low, high - middle, (branch, depth))
            branch, depth = 2 * branch, depth + 1
            if sigma <= middle:
                high, increment = middle, left_increment
            else:
                low, increment, start_value, branch = (
                    middle,
                    increment - left_increment,
                    start_value + left_increment,
                    branch + 1,
                )
        return start_value if sigma <= low else start_value + increment

    def _bridge(self, increment: Tensor, left_length: float, right_length: float, node: tuple[int, int]) -> Tensor:
        """How far the path has come in the left part of an interval."""
        seed = np.random.SeedSequence(self._seed, spawn_key=node, pool_size=ENTROPY_POOL_SIZE).generate_state(1)[0]
        length = left_length + right_length
        return (
            increment * (left_length / length) + self._randn(int(seed)) * (left_length * right_length / length) ** 0.5
        )
