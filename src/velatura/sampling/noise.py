"""Noise that depends on a picture's seed and on nothing else."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

linalg: Any = torch.linalg  # which has no types

RandnBackend = Literal["CPU", "GPU", "NV"]
Randn = Callable[[Sequence[int]], Tensor]

NEARLY_PARALLEL = 0.9995  # cosine above which two noises are mixed along a straight line


class Variation(NamedTuple):
    """Other noise to mix in: a seed for each picture, and how much of it, 0 to 1."""

    seeds: Sequence[int]
    strength: float


class SeededNoise:
    """A source of normal noise for a batch of pictures, each of which draws from its own generator.

    On the CPU the generators are torch's, whatever the device: a seed means the same noise on every machine, alone and
    in any batch. GPU draws on the device itself, and NV imitates an NVIDIA GPU anywhere.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        source: RandnBackend = "CPU",
        variation: Variation | None = None,
        seed_size: tuple[int, int] | None = None,
        ensd: int = 0,
    ) -> None:
        """Shape: of one picture's latents, (4, height, width).

        drawn_at: height and width of the latents that the first noise is drawn for, and laid into the middle of.
        later_seeds: is added to the seeds from the second draw on (ENSD).
        """
        self._seeds = tuple(seeds)
        self._shape = tuple(shape)
        self._device = device
        self._seeded_randn = _RANDN_BACKENDS[source](torch.device(device))
        self._variation = variation if variation and variation.strength else None
        self._seed_shape = (shape[0], *seed_size) if seed_size else self._shape
        self._ensd = ensd
        self._randns: list[Randn] = []

    def draw(self) -> Tensor:
        """The next noise of every picture, (batch, *shape) in float32."""
        if not self._randns:
            self._randns = [self._seeded_randn(seed) for seed in self._seeds]
            noises = [self._first_noise(picture, randn) for picture, randn in enumerate(self._randns)]
            if self._ensd:
                self._randns = [self._seeded_randn(seed + self._ensd) for seed in self._seeds]
        else:
            noises = [randn(self._shape) for randn in self._randns]
        return torch.stack(noises).to(self._device)

    def brownian_noise_sampler(self, sigma_min: float, sigma_max: float) -> Callable[[Tensor, Tensor], Tensor]:
        """A random path for each picture between two levels; any two of its places are noise of unit variance apart."""

        def randn_of_seed(seed: int) -> Tensor:
            return self._seeded_randn(seed)(self._shape)

        trees = [BrownianTree(sigma_min, sigma_max, seed, randn_of_seed) for seed in self._seeds]

        def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            increments = torch.stack([tree(float(sigma), float(sigma_next)) for tree in trees])
            return (increments / (sigma_next - sigma).abs().sqrt()).to(self._device)

        return noise_sampler

    def _first_noise(self, picture: int, randn: Randn) -> Tensor:
        """The noise that a picture starts from."""
        has_own_shape = self._seed_shape == self._shape
        noise = (randn if has_own_shape else self._seeded_randn(self._seeds[picture]))(self._seed_shape)
        if self._variation:
            noise = slerp(
                self._variation.strength, noise, self._seeded_randn(self._variation.seeds[picture])(self._seed_shape)
            )
        return noise if has_own_shape else _paste_centred(randn(self._shape), noise)


def slerp(fraction: float, noise: Tensor, other: Tensor) -> Tensor:
    """Turn one noise towards another by a share of the angle between them, which keeps its spread.

    Angles are measured for each channel and column apart, as the webui does, which variations by it depend on.
    """
    cosines = (_normalize(noise) * _normalize(other)).sum(1)
    if cosines.mean() > NEARLY_PARALLEL:
        return noise * fraction + other * (
            1 - fraction
        )  # the wrong way round, as the webui has it; both are nearly the same
    angle = cosines.acos().unsqueeze(1)
    return torch.sin((1 - fraction) * angle) / angle.sin() * noise + torch.sin(fraction * angle) / angle.sin() * other


def _normalize(noise: Tensor) -> Tensor:
    length: Tensor = linalg.vector_norm(noise, dim=1, keepdim=True)
    return noise / length


def _paste_centred(canvas: Tensor, noise: Tensor) -> Tensor:
    """Noise of another size laid into the middle of noise, cut off where it is larger."""
    rows, columns = (_overlap(canvas.shape[side], noise.shape[side]) for side in (1, 2))
    combined = canvas.clone()
    combined[:, rows[0], columns[0]] = noise[:, rows[1], columns[1]]
    return combined


def _overlap(outer: int, inner: int) -> tuple[slice, slice]:
    """Which places of a side hold the other, centred, and which of the other they hold."""
    margin = (outer - inner) // 2
    length = min(inner, outer)
    return slice(max(margin, 0), max(margin, 0) + length), slice(max(-margin, 0), max(-margin, 0) + length)


class _TorchRandn:
    """Draws from torch's generators on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, seed: int) -> Randn:
        generator = torch.Generator(self._device).manual_seed(seed)
        return lambda shape: torch.randn(tuple(shape), generator=generator, device=self._device)

    @classmethod
    def on_cpu(cls, _device: torch.device) -> Self:
        return cls(torch.device("cpu"))


def _philox(_device: torch.device) -> Callable[[int], Randn]:
    return lambda seed: Philox(seed).draw


_RANDN_BACKENDS: dict[RandnBackend, Callable[[torch.device], Callable[[int], Randn]]] = {
    "CPU": _TorchRandn.on_cpu,
    "GPU": _TorchRandn,
    "NV": _philox,
}


Uint64Array = NDArray[np.uint64]  # of which the lower 32 bits count

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
PHILOX_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ANGLE_UNIT = float(np.float32(2.3283064e-10) * np.float32(6.2831855))  # 2 pi / 2**32 as cuRAND rounds it
LOW_32_BITS, SHIFT_32_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


class Philox:
    """A generator of normal numbers: each draw moves on by one, however many numbers it gives."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._offset = 0

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next normal numbers, in float32."""
        indices = np.arange(prod(shape), dtype=np.uint64)
        zeros = np.zeros_like(indices)
        first, second, _, _ = _philox_rounds((zeros + np.uint64(self._offset), zeros, indices, zeros), self._seed)
        self._offset += 1
        uniform, angle = (first + 0.5) / 2**32, (second + 0.5) * ANGLE_UNIT
        normal = np.sqrt(-2 * np.log(uniform)) * np.sin(angle)
        return torch.tensor(normal, dtype=torch.float32).view(tuple(shape))


def _philox_rounds(
    counter: tuple[Uint64Array, Uint64Array, Uint64Array, Uint64Array], seed: int
) -> tuple[Uint64Array, Uint64Array, Uint64Array, Uint64Array]:
    """What the counters become in ten rounds under a key, which is the seed."""
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
