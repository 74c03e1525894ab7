"""Normal noise for a batch of pictures, drawn from each picture's own seed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from velatura.sampling.noise.brownian import BrownianTree
from velatura.sampling.noise.philox import Philox
from velatura.sampling.recipe.fields import RandnSource

linalg: Any = torch.linalg  # which has no types

Randn = Callable[[Sequence[int]], Tensor]  # a shape -> the next normal numbers of one generator

NEARLY_PARALLEL = 0.9995  # cosine above which two noises are mixed along a straight line


class Variation(NamedTuple):
    """A second noise to mix in: one seed per picture, and how much of it to take, 0 to 1."""

    seeds: Sequence[int]
    strength: float


class SeededNoise:
    """A source of normal noise for a batch of pictures, each of which draws from its own generator.

    A picture therefore gets the same noise alone and in any batch.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        source: RandnSource = "CPU",
        variation: Variation | None = None,
        seed_size: tuple[int, int] | None = None,
        ensd: int = 0,
    ) -> None:
        """Prepare to draw; no noise is drawn yet.

        Args:
            seeds: One per picture.
            shape: Shape of the latents of one picture, (4, height, width).
            device: Device that the noise is moved to.
            source: What generates the numbers. "CPU" uses torch's generator on the CPU, so that a seed gives the same
                noise on every machine. "GPU" draws on `device`. "NV" imitates an NVIDIA GPU on any machine.
            variation: Other noise that the first noise is mixed with.
            seed_size: Height and width, in latents, for which the first noise is drawn. It is pasted into the middle
                of noise of the full shape. None: the shape's own.
            ensd: Number added to the seeds from the second draw on (A1111's eta noise seed delta).
        """
        self._seeds = tuple(seeds)
        self._shape = tuple(shape)
        self._device = device
        self._source: RandnSource = source
        self._variation = variation if variation and variation.strength else None
        self._seed_shape = (shape[0], *seed_size) if seed_size else self._shape
        self._ensd = ensd
        self._generators: list[Randn] = []

    def draw(self) -> Tensor:
        """Return the next noise of every picture, (batch, *shape) in float32."""
        if self._generators:
            noises = [randn(self._shape) for randn in self._generators]
        else:
            self._generators = [self._generator(seed) for seed in self._seeds]
            noises = [self._first_noise(picture, randn) for picture, randn in enumerate(self._generators)]
            if self._ensd:
                self._generators = [self._generator(seed + self._ensd) for seed in self._seeds]
        return torch.stack(noises).to(self._device)

    def brownian_noise_sampler(self, sigma_min: float, sigma_max: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that draws noise from one Brownian path per picture.

        Args:
            sigma_min, sigma_max: The ends of the paths.

        Returns:
            A function of (sigma, sigma_next) that gives noise of unit variance, (batch, *shape): the increment of the
            path between the two noise levels, divided by the root of their distance.
        """

        def randn_of_seed(seed: int) -> Tensor:
            return self._generator(seed)(self._shape)

        trees = [BrownianTree(sigma_min, sigma_max, seed, randn_of_seed) for seed in self._seeds]

        def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            increments = torch.stack([tree(float(sigma), float(sigma_next)) for tree in trees])
            return (increments / (sigma_next - sigma).abs().sqrt()).to(self._device)

        return noise_sampler

    def _generator(self, seed: int) -> Randn:
        if self._source == "NV":
            return Philox(seed).draw
        return _torch_generator(seed, torch.device(self._device if self._source == "GPU" else "cpu"))

    def _first_noise(self, picture: int, randn: Randn) -> Tensor:
        """Return the noise that one picture starts from, (4, height, width)."""
        has_full_size = self._seed_shape == self._shape
        first_randn = randn if has_full_size else self._generator(self._seeds[picture])
        noise = first_randn(self._seed_shape)
        if self._variation:
            other = self._generator(self._variation.seeds[picture])(self._seed_shape)
            noise = slerp(self._variation.strength, noise, other)
        return noise if has_full_size else _paste_centred(randn(self._shape), noise)


def slerp(fraction: float, noise: Tensor, other: Tensor) -> Tensor:
    """Interpolate spherically between two noises, which keeps their variance.

    The angles are measured per channel and column, as A1111 does (modules/rng.py, `slerp`); variations made there
    depend on it.

    Args:
        fraction: 0 gives `noise`, 1 gives `other`.
        noise, other: Noises of equal shape, (channels, height, width).
    """
    cosines = (_normalize(noise) * _normalize(other)).sum(1)
    if cosines.mean() > NEARLY_PARALLEL:
        # A1111 swaps the two here; they are nearly equal
        return noise * fraction + other * (1 - fraction)
    angle = cosines.acos().unsqueeze(1)
    return torch.sin((1 - fraction) * angle) / angle.sin() * noise + torch.sin(fraction * angle) / angle.sin() * other


def _normalize(noise: Tensor) -> Tensor:
    length: Tensor = linalg.vector_norm(noise, dim=1, keepdim=True)
    return noise / length


def _paste_centred(canvas: Tensor, noise: Tensor) -> Tensor:
    """Paste noise of another size into the middle of a canvas of noise, cropped where it is larger."""
    canvas_rows, noise_rows = _overlap(canvas.shape[1], noise.shape[1])
    canvas_columns, noise_columns = _overlap(canvas.shape[2], noise.shape[2])
    combined = canvas.clone()
    combined[:, canvas_rows, canvas_columns] = noise[:, noise_rows, noise_columns]
    return combined


def _overlap(outer: int, inner: int) -> tuple[slice, slice]:
    """Return the overlap of two centred lengths, as a slice of the outer one and a slice of the inner one."""
    margin = (outer - inner) // 2
    length = min(inner, outer)
    return slice(max(margin, 0), max(margin, 0) + length), slice(max(-margin, 0), max(-margin, 0) + length)


def _torch_generator(seed: int, device: torch.device) -> Randn:
    generator = torch.Generator(device).manual_seed(seed)
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=device)
