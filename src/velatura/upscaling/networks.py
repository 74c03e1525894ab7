"""Networks that upscale: ESRGAN's chain of dense blocks (RRDB), and the compact network of Real-ESRGAN (SRVGG).

All read and return pixels from 0 to 1, (pictures, 3, height, width). Their tensors are named as in Real-ESRGAN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2  # of the leaky ReLU, ESRGAN (Wang et al., 2018)
RESIDUAL_SCALE = 0.2  # the paper's beta
DENSE_CONVOLUTIONS = 5
DENSE_BLOCKS = 3  # in a residual-in-residual block


class DenseBlock(nn.Module):
    """Five convolutions; each reads the block's input and what all convolutions before it made.

    Args:
        features: Channels of input and output.
        growth: Channels that each convolution but the last adds.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, DENSE_CONVOLUTIONS + 1):
            channels = growth if number < DENSE_CONVOLUTIONS else features
            setattr(self, f"conv{number}", _convolution(features + (number - 1) * growth, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with what the block adds to it."""
        found = [x]
        for number in range(1, DENSE_CONVOLUTIONS):
            made = self.get_submodule(f"conv{number}")(torch.cat(found, 1))
            found.append(functional.leaky_relu(made, SLOPE))
        return x + RESIDUAL_SCALE * self.get_submodule(f"conv{DENSE_CONVOLUTIONS}")(torch.cat(found, 1))


class ResidualInResidualBlock(nn.Module):
    """Three dense blocks, and a residual around them (RRDB)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, DENSE_BLOCKS + 1):
            setattr(self, f"rdb{number}", DenseBlock(features, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with what the blocks add to it."""
        made = x
        for number in range(1, DENSE_BLOCKS + 1):
            made = self.get_submodule(f"rdb{number}")(made)
        return x + RESIDUAL_SCALE * made


class RrdbNetwork(nn.Module):
    """The generator of ESRGAN, and of BSRGAN and Real-ESRGAN.

    Args:
        features: Channels inside.
        growth: Channels that a dense convolution adds.
        blocks: Residual-in-residual blocks.
        doublings: How often the sides are doubled.
        unshuffle: The image is first folded by so much into channels, as Real-ESRGAN does for scales below 4.

    Attributes:
        scale: Sides of the result are so many times those of the image.
        multiple: Sides of the image must be multiples of this.
    """

    def __init__(self, *, features: int, growth: int, blocks: int, doublings: int, unshuffle: int = 1) -> None:
        super().__init__()
        self.multiple = unshuffle
        self.scale = 2**doublings // unshuffle
        self._doublings = doublings
        self.conv_first = _convolution(3 * unshuffle**2, features)
        self.body = nn.Sequential(*(ResidualInResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = _convolution(features, features)
        for number in range(1, doublings + 1):
            setattr(self, f"conv_up{number}", _convolution(features, features))
        self.conv_hr = _convolution(features, features)
        self.conv_last = _convolution(features, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pixels upscaled."""
        first = self.conv_first(functional.pixel_unshuffle(pixels, self.multiple))
        x = first + self.conv_body(self.body(first))
        for number in range(1, self._doublings + 1):
            larger = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = functional.leaky_relu(self.get_submodule(f"conv_up{number}")(larger), SLOPE)
        return self.conv_last(functional.leaky_relu(self.conv_hr(x), SLOPE))


class CompactNetwork(nn.Module):
    """The compact network of Real-ESRGAN (SRVGG): convolutions at the image's size, whose last makes all pixels.

    Args:
        features: Channels inside.
        convolutions: Convolutions between the first and the last.
        scale: Sides of the result are so many times those of the image.
    """

    def __init__(self, *, features: int, convolutions: int, scale: int) -> None:
        super().__init__()
        self.scale, self.multiple = scale, 1
        layers: list[nn.Module] = [_convolution(3, features), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [_convolution(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, _convolution(features, 3 * scale**2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pixels upscaled: what the network makes is added to the nearest pixels of the image."""
        nearest = functional.interpolate(pixels, scale_factor=float(self.scale), mode="nearest")
        return functional.pixel_shuffle(self.body(pixels), self.scale) + nearest


UpscalerNetwork = RrdbNetwork | CompactNetwork


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)
