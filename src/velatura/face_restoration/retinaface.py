"""RetinaFace's network on a ResNet: where faces and their five landmarks are, on three grids.

From the papers: Deng et al., RetinaFace: Single-stage Dense Face Localisation in the Wild, 2019; He et al., Deep
Residual Learning for Image Recognition, 2015; Lin et al., Feature Pyramid Networks, 2017; Najibi et al., SSH: Single
Stage Headless Face Detector, 2017. Tensors are named as in the file that people have, detection_Resnet50_Final.pth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EXPANSION = 4  # channels that a bottleneck block gives, by those inside it
ANCHORS_PER_CELL = 2
BOX_NUMBERS, LANDMARK_COUNT = 4, 5
LEVELS = 3  # grids that are searched, of the last three stages of the ResNet


class RawDetections(NamedTuple):
    """What the network gives for each anchor, the finest grid first.

    Attributes:
        scores: Probabilities of a face, (batch, anchors).
        boxes: Offsets of centres and logarithms of sizes, (batch, anchors, 4).
        landmarks: Offsets of landmarks, (batch, anchors, 5, 2).
    """

    scores: Tensor
    boxes: Tensor
    landmarks: Tensor


class FixedBatchNorm(nn.Module):
    """Batch normalisation by the statistics of the training, which a file holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return functional.batch_norm(x, mean, variance, self.weight, self.bias)


class Bottleneck(nn.Module):
    """A bottleneck block of a ResNet: 1 x 1, 3 x 3 with the stride, 1 x 1, and a residual around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * EXPANSION
        self.conv1, self.bn1 = _convolution(channels_in, channels, 1), FixedBatchNorm(channels)
        self.conv2, self.bn2 = _convolution(channels, channels, 3, stride), FixedBatchNorm(channels)
        self.conv3, self.bn3 = _convolution(channels, channels_out, 1), FixedBatchNorm(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = _conv_norm(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the block's stride."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        residual = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn3(self.conv3(inner)) + residual)


class ResNet(nn.Module):
    """A ResNet of bottleneck blocks without its classifier.

    Args:
        channels: Inside the blocks of each of the four stages.
        blocks: Blocks of each stage.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(3, channels[0], 7, 2), FixedBatchNorm(channels[0])
        channels_in = channels[0]
        for stage, (inner, count) in enumerate(zip(channels, blocks, strict=True), 1):
            layer = nn.Sequential()
            for number in range(count):
                layer.append(Bottleneck(channels_in, inner, 2 if stage > 1 and number == 0 else 1))
                channels_in = inner * EXPANSION
            setattr(self, f"layer{stage}", layer)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of the last three stages, with strides of 8, 16 and 32."""
        x = torch.relu(self.bn1(self.conv1(pixels)))
        x = self.get_submodule("layer1")(functional.max_pool2d(x, 3, stride=2, padding=1))
        found: list[Tensor] = []
        for stage in (2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            found.append(x)
        return found


class FeaturePyramid(nn.Module):
    """Gives every grid what the coarser ones know (FPN).

    Args:
        channels_in: Channels of the three grids, the finest first.
        channels: Channels of the result.
    """

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        for number, width in enumerate(channels_in, 1):
            setattr(self, f"output{number}", _conv_norm_relu(width, channels, 1))
        self.merge1, self.merge2 = (
            _conv_norm_relu(channels, channels, 3),
            _conv_norm_relu(channels, channels, 3),
        )

    def forward(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """Return three grids of equal channels, the finest first."""
        fine, middle, coarse = (self.get_submodule(f"output{number}")(grid) for number, grid in enumerate(grids, 1))
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[-2:], mode="nearest"))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[-2:], mode="nearest"))
        return [fine, middle, coarse]


class ContextModule(nn.Module):
    """Sees a cell's surroundings in three sizes, by one, two and three convolutions in a row (SSH)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.conv3X3 = _conv_norm(channels, half, 3)
        self.conv5X5_1, self.conv5X5_2 = (
            _conv_norm_relu(channels, quarter, 3),
            _conv_norm(quarter, quarter, 3),
        )
        self.conv7X7_2, self.conv7x7_3 = (
            _conv_norm_relu(quarter, quarter, 3),
            _conv_norm(quarter, quarter, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        shared = self.conv5X5_1(x)
        parts = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return torch.relu(torch.cat(parts, 1))


class AnchorHead(nn.Module):
    """Numbers for each anchor of a grid.

    Args:
        channels: Channels of the grid.
        numbers: Numbers of an anchor.
    """

    def __init__(self, channels: int, numbers: int) -> None:
        super().__init__()
        self._numbers = numbers
        self.conv1x1 = nn.Conv2d(channels, ANCHORS_PER_CELL * numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, anchors, numbers), row by row."""
        return self.conv1x1(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self._numbers))


class RetinaFaceNetwork(nn.Module):
    """Detects faces in pixels.

    Args:
        channels: Inside the blocks of each of the ResNet's four stages.
        blocks: Blocks of each stage.
        pyramid_channels: Channels of the three grids; a multiple of 4.
    """

    def __init__(self, *, channels: Sequence[int], blocks: Sequence[int], pyramid_channels: int) -> None:
        super().__init__()
        self.body = ResNet(channels, blocks)
        self.fpn = FeaturePyramid([inner * EXPANSION for inner in channels[1:]], pyramid_channels)
        for level in range(1, LEVELS + 1):
            setattr(self, f"ssh{level}", ContextModule(pyramid_channels))
        self.ClassHead = self._heads(pyramid_channels, 2)
        self.BboxHead = self._heads(pyramid_channels, BOX_NUMBERS)
        self.LandmarkHead = self._heads(pyramid_channels, LANDMARK_COUNT * 2)

    @staticmethod
    def _heads(channels: int, numbers: int) -> nn.ModuleList:
        return nn.ModuleList(AnchorHead(channels, numbers) for _ in range(LEVELS))

    def forward(self, pixels: Tensor) -> RawDetections:
        """Return numbers for each anchor of the grids of 8, 16 and 32 pixels.

        Args:
            pixels: (batch, 3, height, width), blue, green, red from 0 to 255, less the means of the training pictures.
        """
        grids = [self.get_submodule(f"ssh{level}")(grid) for level, grid in enumerate(self.fpn(self.body(pixels)), 1)]
        classes, boxes, landmarks = (
            torch.cat([head(grid) for head, grid in zip(heads, grids, strict=True)], 1)
            for heads in (self.ClassHead, self.BboxHead, self.LandmarkHead)
        )
        return RawDetections(classes.softmax(-1)[..., 1], boxes, landmarks.unflatten(-1, (LANDMARK_COUNT, 2)))


def _convolution(channels_in: int, channels_out: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, bias=False)


def _conv_norm(channels_in: int, channels_out: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_convolution(channels_in, channels_out, side, stride), FixedBatchNorm(channels_out))


def _conv_norm_relu(channels_in: int, channels_out: int, side: int) -> nn.Sequential:
    return _conv_norm(channels_in, channels_out, side).append(nn.ReLU())
