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

Normal = Callable[[int], Tensor]  # a seed -> normal numbers

DIGITS = 6  # of a level, below which two are the same
POOL = 24  # words of entropy that numpy mixes a seed from


class Brownian:
    """A path from one level to another; its differences are normal, with the distance of the levels for variance."""

    def __init__(self, low: float, high: float, seed: int, normal: Normal) -> None:
        self._low, self._high = round(low, DIGITS), round(high, DIGITS)
        self._seed = seed
        self._normal = normal
        self._end = normal(int(np.random.SeedSequence(seed, pool_size=POOL).generate_state(1)[0])) * (high - low) ** 0.5
        self._at = lru_cache(maxsize=4)(self._found)  # a step starts where the last one ended

    def __call__(self, here: float, there: float) -> Tensor:
        """The path's way from here to there; levels beyond its ends are its ends."""
        return self._at(self._place(there)) - self._at(self._place(here))

    def _place(self, level: float) -> float:
        return round(min(max(level, self._low), self._high), DIGITS)

    def _found(self, place: float) -> Tensor:
        """Where the path is at a level, by halving the interval that it lies in."""
        low, high, way = self._low, self._high, self._end
        so_far, branch, depth = way * 0, 0, 0
        while low < place < high:
            middle = round((low + high) / 2, DIGITS)
            left = self._half(way, middle - low, high - middle, (branch, depth))
            branch, depth = 2 * branch, depth + 1
            if place <= middle:
                high, way = middle, left
            else:
                low, way, so_far, branch = middle, way - left, so_far + left, branch + 1
        return so_far if place <= low else so_far + way

    def _half(self, way: Tensor, left: float, right: float, node: tuple[int, int]) -> Tensor:
        """How far the path has come in the left part of an interval."""
        seed = np.random.SeedSequence(self._seed, spawn_key=node, pool_size=POOL).generate_state(1)[0]
        whole = left + right
        return way * (left / whole) + self._normal(int(seed)) * (left * right / whole) ** 0.5
