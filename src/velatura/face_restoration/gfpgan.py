"""GFPGAN's network without custom operators, of versions 1.2 to 1.4: a U-Net whose features steer a StyleGAN2 decoder.

From the papers: Wang et al., Towards Real-World Blind Face Restoration with Generative Facial Prior, 2021; Karras et
al., Analyzing and Improving the Image Quality of StyleGAN, 2020. Tensors are named as in the files that people have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2  # of the leaky ReLU
GAIN = 2**0.5  # of StyleGAN2's layers, which keeps the variance behind a leaky ReLU
EPSILON = 1e-8  # of the demodulation
FIRST_SIDE = 4  # of the decoder's constant input, in pixels
CONVOLUTIONS_PER_SIZE = 2


class ScalingBlock(nn.Module):
    """A residual block that halves or doubles the sides between its two convolutions.

    Args:
        channels_in, channels_out: Channels of input and output.
        factor: By which the sides are multiplied, 0.5 or 2.
    """

    def __init__(self, channels_in: int, channels_out: int, factor: float) -> None:
        super().__init__()
        self._factor = factor
        self.conv1 = _convolution(channels_in, channels_in)
        self.conv2 = _convolution(channels_in, channels_out)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features at the other size."""
        inner = _resize(functional.leaky_relu(self.conv1(x), SLOPE), self._factor)
        return functional.leaky_relu(self.conv2(inner), SLOPE) + self.skip(_resize(x, self._factor))


class ModulatedConvolution(nn.Module):
    """A convolution whose input channels a style scales, and whose outputs are normalised by the scaled weights.

    Args:
        channels_in, channels_out: Channels of input and output.
        style_features: Features of the style.
        side: Sides of the kernel in pixels.
        is_normalised: Divide each output by the length of its scaled weights (demodulation).
    """

    def __init__(
        self, channels_in: int, channels_out: int, style_features: int, side: int, *, is_normalised: bool = True
    ) -> None:
        super().__init__()
        self._is_normalised = is_normalised
        self.modulation = nn.Linear(style_features, channels_in)
        self.weight = nn.Parameter(torch.empty(1, channels_out, channels_in, side, side))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (batch, channels, height, width) of the same sides.

        Args:
            x: (batch, channels, height, width).
            style: (batch, style features).
        """
        scales, weight = self.modulation(style), self.weight[0]
        # the weights are the same for all faces of a batch: scaling inputs and outputs does what scaling weights would
        result = functional.conv2d(x * scales[:, :, None, None], weight, padding=weight.shape[-1] // 2)
        if not self._is_normalised:
            return result
        lengths = scales.square() @ weight.square().sum((2, 3)).T + EPSILON  # (batch, channels out)
        return result * lengths.rsqrt()[:, :, None, None]


class StyleLayer(nn.Module):
    """A modulated convolution with noise, a bias and a leaky ReLU behind it.

    Args:
        channels_in, channels_out: Channels of input and output.
        style_features: Features of the style.
    """

    def __init__(self, channels_in: int, channels_out: int, style_features: int) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConvolution(channels_in, channels_out, style_features, 3)
        self.weight = nn.Parameter(torch.empty(1))  # of the noise
        self.bias = nn.Parameter(torch.empty(1, channels_out, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """Return features; `noise` is (1, 1, height, width)."""
        convolved = self.modulated_conv(x, style) * GAIN
        return functional.leaky_relu(convolved + self.weight * noise + self.bias, SLOPE)


class ColourLayer(nn.Module):
    """Makes the three colours of features, which add to the colours of the size before.

    Args:
        channels: Channels of the features.
        style_features: Features of the style.
    """

    def __init__(self, channels: int, style_features: int) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConvolution(channels, 3, style_features, 1, is_normalised=False)
        self.bias = nn.Parameter(torch.empty(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, smaller: Tensor | None) -> Tensor:
        """Return colours, (batch, 3, height, width); `smaller` are those of half the sides."""
        colours = self.modulated_conv(x, style) + self.bias
        return colours if smaller is None else colours + _resize(smaller, 2)


class ConstantInput(nn.Module):
    """The learned features that the decoder starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, FIRST_SIDE, FIRST_SIDE))


class StyleDecoder(nn.Module):
    """StyleGAN2's generator, whose features are scaled and shifted at each size.

    Args:
        channels: Channels by size, from 4 pixels upwards.
        style_features: Features of the style.
    """

    def __init__(self, channels: Sequence[int], style_features: int) -> None:
        super().__init__()
        first, *larger = channels
        self.constant_input = ConstantInput(first)
        self.style_conv1 = StyleLayer(first, first, style_features)
        self.to_rgb1 = ColourLayer(first, style_features)
        self.style_convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise0", torch.empty(1, 1, FIRST_SIDE, FIRST_SIDE))
        before = first
        for size, after in enumerate(larger, 1):
            self.style_convs.append(StyleLayer(before, after, style_features))
            self.style_convs.append(StyleLayer(after, after, style_features))
            self.to_rgbs.append(ColourLayer(after, style_features))
            side = FIRST_SIDE * 2**size
            for number in (2 * size - 1, 2 * size):
                self.noises.register_buffer(f"noise{number}", torch.empty(1, 1, side, side))
            before = after

    def forward(self, styles: Tensor, conditions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return colours, (batch, 3, height, width), from about -1 to 1.

        Args:
            styles: (batch, layers, style features).
            conditions: Scales and shifts of the last channels, by size from 8 pixels upwards.
        """
        x = self.constant_input.weight.expand(len(styles), -1, -1, -1)
        x = self.style_conv1(x, styles[:, 0], self._noise(0))
        colours = self.to_rgb1(x, styles[:, 1], None)
        for size, (scale, shift) in enumerate(conditions):
            # the colours of a size and the first convolution of the next share a style, as in StyleGAN2
            layer = CONVOLUTIONS_PER_SIZE * size + 1
            doubling, same = self.style_convs[layer - 1], self.style_convs[layer]
            x = doubling(_resize(x, 2), styles[:, layer], self._noise(layer))
            kept, steered = x.split([x.shape[1] - scale.shape[1], scale.shape[1]], 1)
            x = torch.cat([kept, steered * scale + shift], 1)
            x = same(x, styles[:, layer + 1], self._noise(layer + 1))
            colours = self.to_rgbs[size](x, styles[:, layer + 2], colours)
        return colours

    def _noise(self, number: int) -> Tensor:
        return self.noises.get_buffer(f"noise{number}")


class GfpganNetwork(nn.Module):
    """Restores an aligned face.

    Args:
        encoder_channels: Channels of the U-Net by size, from the image's down to 4 pixels.
        decoder_channels: Channels of the decoder by size, from 4 pixels upwards.
        condition_channels: How many of them are scaled and shifted, by size from 8 pixels upwards.
        style_features: Features of a style.

    Attributes:
        side: Sides of the face in pixels.
    """

    def __init__(
        self,
        *,
        encoder_channels: Sequence[int],
        decoder_channels: Sequence[int],
        condition_channels: Sequence[int],
        style_features: int,
    ) -> None:
        super().__init__()
        self.side = FIRST_SIDE * 2 ** (len(encoder_channels) - 1)
        self._style_features = style_features
        first, *smaller = encoder_channels
        last = encoder_channels[-1]
        larger = list(reversed(encoder_channels))[1:]
        self.conv_body_first = nn.Conv2d(3, first, 1)
        self.conv_body_down = nn.ModuleList(
            ScalingBlock(before, after, 0.5) for before, after in zip(encoder_channels, smaller, strict=False)
        )
        self.final_conv = _convolution(last, last)
        layers = CONVOLUTIONS_PER_SIZE * len(encoder_channels)
        self.final_linear = nn.Linear(last * FIRST_SIDE**2, layers * style_features)
        self.conv_body_up = nn.ModuleList(
            ScalingBlock(before, after, 2) for before, after in zip([last, *larger], larger, strict=False)
        )
        self.condition_scale = nn.ModuleList(map(_condition_layers, larger, condition_channels))
        self.condition_shift = nn.ModuleList(map(_condition_layers, larger, condition_channels))
        self.stylegan_decoder = StyleDecoder(decoder_channels, style_features)

    def forward(self, face: Tensor) -> Tensor:
        """Return the face restored.

        Args:
            face: (batch, 3, side, side), RGB from -1 to 1.

        Returns:
            The same shape; values may lie a little outside -1 to 1.
        """
        x = functional.leaky_relu(self.conv_body_first(face), SLOPE)
        skips: list[Tensor] = []
        for block in self.conv_body_down:
            x = block(x)
            skips.append(x)
        x = functional.leaky_relu(self.final_conv(x), SLOPE)
        styles = self.final_linear(x.flatten(1)).unflatten(1, (-1, self._style_features))
        conditions: list[tuple[Tensor, Tensor]] = []
        layers = zip(self.conv_body_up, self.condition_scale, self.condition_shift, reversed(skips), strict=True)
        for block, scale, shift, skip in layers:
            x = block(x + skip)
            conditions.append((scale(x), shift(x)))
        return self.stylegan_decoder(styles, conditions)


def _condition_layers(channels: int, condition_channels: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels, channels), nn.LeakyReLU(SLOPE), _convolution(channels, condition_channels)
    )


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _resize(x: Tensor, factor: float) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
