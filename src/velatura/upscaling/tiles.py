"""Apply an upscaler to an image of any size, tile by tile, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.errors import BadArgument
from velatura.upscaling.read_upscaler import Upscaler

TILE_PIXELS = 192  # sides of what a tile contributes; A1111's default size of a tile
MARGIN_PIXELS = 16  # around it, so that no seam shows
ALIGNMENT = 4  # of what is read: networks that fold pixels into channels start at such places
MAX_PIXELS = 2**30  # that a network may make of an image; each takes about 10 bytes of memory
MAX_PASSES = 3  # of a network whose scale is too small, as in A1111

OnTile = Callable[[int, int], None]  # called with tiles done and tiles of this pass; what it raises ends the work


class TileSpan(NamedTuple):
    """A part of one side of an image: what a tile contributes, and what it reads for that, in pixels."""

    start: int
    end: int
    read_start: int
    read_end: int


def upscale_image(
    upscaler: Upscaler,
    image: Image.Image,
    size: tuple[int, int] | None = None,
    *,
    device: torch.device | str = "cpu",
    on_tile: OnTile | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Upscale an image by a network, and resize the result to a size.

    Args:
        upscaler: The network; it is moved to the device, and stays there.
        image: An image in RGB, or in RGBA, whose transparency is resized by Lanczos.
        size: Width and height of the result. The network is applied until both are reached, three times at most, then
            Lanczos resizes to them. None: the size that the network makes in one pass.
        device: Where the network computes.
        on_tile: Called after each tile.
        max_pixels: The most pixels that a pass may make, which bounds the memory.

    Returns:
        The upscaled image, in the image's mode.

    Raises:
        BadArgument: A pass would make more pixels.
    """
    upscaler.network.to(device)
    pixels = _to_pixels(image.convert("RGB"))
    for _ in range(MAX_PASSES):
        _check_size(upscaler, pixels.shape[-1], pixels.shape[-2], max_pixels)
        pixels = _upscale_tiles(upscaler, pixels, torch.device(device), on_tile)
        height, width = pixels.shape[-2:]
        if upscaler.scale == 1 or size is None or (width >= size[0] and height >= size[1]):
            break
    upscaled = _to_image(pixels)
    if size is not None and upscaled.size != size:
        upscaled = upscaled.resize(size, Image.Resampling.LANCZOS)
    if "A" in image.getbands():
        upscaled.putalpha(image.getchannel("A").resize(upscaled.size, Image.Resampling.LANCZOS))
    return upscaled


def _check_size(upscaler: Upscaler, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that a pass would make too large."""
    size = width * upscaler.scale, height * upscaler.scale
    if size[0] * size[1] > max_pixels:
        raise BadArgument(
            f"{upscaler.name} makes {size[0]} x {size[1]} pixels of {width} x {height}, more than {max_pixels:,}: "
            "shrink the image first, or choose an upscaler of a smaller scale"
        )


@torch.no_grad()
def _upscale_tiles(upscaler: Upscaler, pixels: Tensor, device: torch.device, on_tile: OnTile | None) -> Tensor:
    """Upscale pixels, (1, 3, height, width) in bytes, by one pass of the network."""
    height, width = pixels.shape[-2:]
    scale = upscaler.scale
    result = torch.empty((1, 3, height * scale, width * scale), dtype=torch.uint8)
    tiles = [(row, column) for row in _spans(height) for column in _spans(width)]
    for done, (row, column) in enumerate(tiles, 1):
        tile = pixels[..., row.read_start : row.read_end, column.read_start : column.read_end]
        upscaled = _run(upscaler, tile.to(device, torch.float32) / 255)
        top, left = (row.start - row.read_start) * scale, (column.start - column.read_start) * scale
        rows, columns = (row.end - row.start) * scale, (column.end - column.start) * scale
        part = upscaled[..., top : top + rows, left : left + columns]
        result[..., row.start * scale : row.end * scale, column.start * scale : column.end * scale] = part.cpu()
        if on_tile is not None:
            on_tile(done, len(tiles))
    return result


def _run(upscaler: Upscaler, pixels: Tensor) -> Tensor:
    """Return the pixels of a tile upscaled, in bytes; the sides are filled up where the network needs a multiple."""
    height, width = pixels.shape[-2:]
    multiple = upscaler.network.multiple
    padding = (0, -width % multiple, 0, -height % multiple)
    upscaled = upscaler.network(functional.pad(pixels, padding, mode="replicate"))
    upscaled = upscaled[..., : height * upscaler.scale, : width * upscaler.scale]
    # A half-trained network may return NaN, which has no colour: black, as Pillow shows it
    return (upscaled.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)


def _spans(length: int) -> Iterator[TileSpan]:
    """Divide a side into tiles of equal size, none above TILE_PIXELS, and give each its margins."""
    count = -(-length // TILE_PIXELS)
    for number in range(count):
        start, end = number * length // count, (number + 1) * length // count
        read_start = max(0, start - MARGIN_PIXELS) // ALIGNMENT * ALIGNMENT
        yield TileSpan(start, end, read_start, min(length, end + MARGIN_PIXELS))


def _to_pixels(image: Image.Image) -> Tensor:
    return torch.tensor(np.asarray(image)).permute(2, 0, 1)[None]


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
