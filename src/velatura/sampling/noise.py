"""Noise that depends on a picture's seed and on nothing else."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from velatura.sampling.brownian import Brownian
from velatura.sampling.philox import Philox

linalg: Any = torch.linalg  # which has no types

NoiseSource = Literal["CPU", "GPU", "NV"]
Draw = Callable[[Sequence[int]], Tensor]

NEARLY_PARALLEL = 0.9995  # cosine above which two noises are mixed along a straight line


class Variation(NamedTuple):
    """Other noise to mix in: a seed for each picture, and how much of it, 0 to 1."""

    seeds: Sequence[int]
    strength: float


class Noise:
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
        source: NoiseSource = "CPU",
        variation: Variation | None = None,
        drawn_at: tuple[int, int] | None = None,
        later_seeds: int = 0,
    ) -> None:
        """Shape: of one picture's latents, (4, height, width).

        drawn_at: height and width of the latents that the first noise is drawn for, and laid into the middle of.
        later_seeds: is added to the seeds from the second draw on (ENSD).
        """
        self._seeds = tuple(seeds)
        self._shape = tuple(shape)
        self._device = device
        self._begin = _SOURCES[source](torch.device(device))
        self._variation = variation if variation and variation.strength else None
        self._drawn_at = (shape[0], *drawn_at) if drawn_at else self._shape
        self._later_seeds = later_seeds
        self._draws: list[Draw] = []

    def draw(self) -> Tensor:
        """The next noise of every picture, (batch, *shape) in float32."""
        if not self._draws:
            self._draws = [self._begin(seed) for seed in self._seeds]
            drawn = [self._first(place, draw) for place, draw in enumerate(self._draws)]
            if self._later_seeds:
                self._draws = [self._begin(seed + self._later_seeds) for seed in self._seeds]
        else:
            drawn = [draw(self._shape) for draw in self._draws]
        return torch.stack(drawn).to(self._device)

    def brownian(self, low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
        """A random path for each picture between two levels; any two of its places are noise of unit variance apart."""

        def normal(seed: int) -> Tensor:
            return self._begin(seed)(self._shape)

        paths = [Brownian(low, high, seed, normal) for seed in self._seeds]

        def between(here: Tensor, there: Tensor) -> Tensor:
            way = torch.stack([path(float(here), float(there)) for path in paths])
            return (way / (there - here).abs().sqrt()).to(self._device)

        return between

    def _first(self, place: int, draw: Draw) -> Tensor:
        """The noise that a picture starts from."""
        plain = self._drawn_at == self._shape
        noise = (draw if plain else self._begin(self._seeds[place]))(self._drawn_at)
        if self._variation:
            noise = slerp(self._variation.strength, noise, self._begin(self._variation.seeds[place])(self._drawn_at))
        return noise if plain else _laid_into(draw(self._shape), noise)


def slerp(share: float, noise: Tensor, other: Tensor) -> Tensor:
    """Turn one noise towards another by a share of the angle between them, which keeps its spread.

    Angles are measured for each channel and column apart, as the webui does, which variations by it depend on.
    """
    cosines = (_unit(noise) * _unit(other)).sum(1)
    if cosines.mean() > NEARLY_PARALLEL:
        return noise * share + other * (1 - share)  # the wrong way round, as the webui has it; both are nearly the same
    angle = cosines.acos().unsqueeze(1)
    return torch.sin((1 - share) * angle) / angle.sin() * noise + torch.sin(share * angle) / angle.sin() * other


def _unit(noise: Tensor) -> Tensor:
    length: Tensor = linalg.vector_norm(noise, dim=1, keepdim=True)
    return noise / length


def _laid_into(sheet: Tensor, noise: Tensor) -> Tensor:
    """Noise of another size laid into the middle of noise, cut off where it is larger."""
    rows, columns = (_overlap(sheet.shape[side], noise.shape[side]) for side in (1, 2))
    laid = sheet.clone()
    laid[:, rows[0], columns[0]] = noise[:, rows[1], columns[1]]
    return laid


def _overlap(outer: int, inner: int) -> tuple[slice, slice]:
    """Which places of a side hold the other, centred, and which of the other they hold."""
    margin = (outer - inner) // 2
    length = min(inner, outer)
    return slice(max(margin, 0), max(margin, 0) + length), slice(max(-margin, 0), max(-margin, 0) + length)


class _Torch:
    """Draws from torch's generators on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, seed: int) -> Draw:
        generator = torch.Generator(self._device).manual_seed(seed)
        return lambda shape: torch.randn(tuple(shape), generator=generator, device=self._device)

    @classmethod
    def on_cpu(cls, _device: torch.device) -> Self:
        return cls(torch.device("cpu"))


def _philox(_device: torch.device) -> Callable[[int], Draw]:
    return lambda seed: Philox(seed).draw


_SOURCES: dict[NoiseSource, Callable[[torch.device], Callable[[int], Draw]]] = {
    "CPU": _Torch.on_cpu,
    "GPU": _Torch,
    "NV": _philox,
}
