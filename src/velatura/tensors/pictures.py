"""Tensors in pictures, as the webui shares embeddings: in the text of a PNG, or in pixels on both sides."""

from __future__ import annotations

import base64
import binascii
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features
from torch import Tensor

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KEY = "sd-ti-embedding"
TENSOR_KEY = "TORCHTENSOR"
TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
MAX_TEXT_BYTES = 2**23  # bytes: 75 vectors of an SD2 take 2 MB
MAX_PIXELS = 2**24
PILLOW_FEATURES = {"WebP": "webp", "AVIF": "avif"}  # what Pillow calls the parts that it may have been built without
JPEG_XL_SIGNATURES = b"\xff\x0a", b"\x00\x00\x00\x0cJXL "  # bare, and in its container
LOW_BITS = 0x0F
ZLIB_MAGIC = b"\x78"  # how all that zlib packs begins

PixelBlock = npt.NDArray[np.uint8]


def is_picture(start: bytes) -> bool:
    """Whether a file that starts so is a picture that may hold tensors: a PNG, a WebP or an AVIF."""
    return start[:8] == PNG_SIGNATURE or _format_name(start) in PILLOW_FEATURES


def unsupported_format(start: bytes) -> str:
    """The kind of picture that may hold tensors, and starts so, but cannot be read here; "" of all else."""
    kind = _format_name(start)
    return kind if kind and not (kind in PILLOW_FEATURES and features.check(PILLOW_FEATURES[kind])) else ""


def _format_name(start: bytes) -> str:
    if (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
        return "WebP"
    if start[4:12] == b"ftypavif":
        return "AVIF"
    return "JPEG XL" if start.startswith(JPEG_XL_SIGNATURES) else ""


def read(data: bytes) -> dict[object, object]:
    """What the webui put into a picture, {} if nothing; raises ValueError where that is damaged."""
    text = _embedded_text(data) if data[:8] == PNG_SIGNATURE else None
    try:
        encoded = _read_low_bits(data) if text is None else base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"has a {TEXT_KEY} that is no base64") from None
    return {} if encoded is None else _parse_payload(encoded)


def write(picture: Image.Image, payload: Mapping[str, object]) -> bytes:
    """A PNG of a picture with a dict in it, whose tensors are written out as numbers."""
    encoded = json.dumps(payload, default=_as_numbers).encode()
    png_info = PngImagePlugin.PngInfo()
    png_info.add_text(TEXT_KEY, base64.b64encode(encoded).decode())
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=png_info)
    return file.getvalue()


def _as_numbers(tensor: object) -> dict[str, object]:
    assert isinstance(tensor, Tensor)
    return {TENSOR_KEY: cast("object", tensor.detach().float().cpu().numpy().tolist())}


def _embedded_text(data: bytes) -> bytes | None:
    """What stands under the key in a PNG's texts."""
    texts = {
        text for kind, body in _chunks(data) if kind in TEXT_CHUNKS and (text := _chunk_text(kind, body)) is not None
    }
    if len(texts) > 1:
        raise ValueError(f"has several {TEXT_KEY} that differ")
    return next(iter(texts), None)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG up to its end, each with its checksum right."""
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        body, checksum = (
            data[position + 8 : position + 8 + length],
            data[position + 8 + length : position + 12 + length],
        )
        if len(checksum) != 4:
            raise ValueError("ends before its picture does, so it is cut short")
        if zlib.crc32(kind + body) != int.from_bytes(checksum):
            raise ValueError(f"has a wrong checksum in its {kind.decode('latin1')!r}, so it is damaged")
        yield kind, body
        position += 12 + length


def _chunk_text(kind: bytes, body: bytes) -> bytes | None:
    """The text of a chunk, if it is the one that is looked for."""
    key, separator, rest = body.partition(b"\0")
    if not separator or key != TEXT_KEY.encode():
        return None
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflate(rest[1:])
    packed, rest = rest[:1], rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and translated key
    return _inflate(rest) if packed == b"\1" else rest


def _read_low_bits(data: bytes) -> bytes | None:
    """What lies in the low bits of the blocks to the left and to the right of a picture."""
    pixels = _pixels(data)
    gaps = np.flatnonzero(~(pixels & LOW_BITS).any(axis=(0, 2)))
    if len(gaps) < 2:
        return None
    low, high = (_remove_mask(block) & LOW_BITS for block in (pixels[:, : gaps[0]], pixels[:, gaps[-1] + 1 :]))
    packed = (high << 4 | low).tobytes() if low.shape == high.shape else b""
    return _inflate(packed) if packed[:1] == ZLIB_MAGIC else None


def _pixels(data: bytes) -> PixelBlock:
    """The pixels of a picture within its black frame, (height, width, 3)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"is a picture of {image.width} x {image.height} pixels, too large to look into")
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is a picture that cannot be read (it is damaged)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(f"is a picture that cannot be read ({error})") from None
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in ((1, 2), (0, 2)))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def _remove_mask(block: PixelBlock) -> PixelBlock:
    """A block in a row, without the noise of a linear congruential generator that lies over it."""
    return block.reshape(-1) ^ (_lcg_numbers(block.size) % 255 & LOW_BITS).astype(np.uint8)


def _lcg_numbers(count: int) -> npt.NDArray[np.uint64]:
    """The first numbers of x = 1664525 x + 1013904223 modulo 2**32, from 0 on: twice as many at each turn."""
    factor, summand, numbers = 1664525, 1013904223, np.array([1013904223], np.uint64)
    while len(numbers) < count:
        next_numbers = (numbers * np.uint64(factor) + np.uint64(summand)) % np.uint64(2**32)
        numbers = np.concatenate([numbers, next_numbers])
        factor, summand = factor * factor % 2**32, (factor + 1) * summand % 2**32
    return numbers[:count]


def _inflate(packed: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        raise ValueError("has something packed in it that is damaged") from None
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise ValueError(f"has a text that is cut short, or of more than {MAX_TEXT_BYTES:,} bytes")
    return text


def _parse_payload(encoded: bytes) -> dict[object, object]:
    try:
        payload: object = json.loads(encoded, object_hook=_decode_tensor, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else "it is nested too deeply"
        raise ValueError(f"has an embedding that cannot be read ({reason})") from None
    if not isinstance(payload, dict):
        raise ValueError("has an embedding that is no dict")
    return cast("dict[object, object]", payload)


def _decode_tensor(decoded: dict[str, Any]) -> object:
    """A tensor of its numbers, or the dict that it is."""
    if decoded.keys() != {TENSOR_KEY}:
        return decoded
    numbers = decoded[TENSOR_KEY]
    listed = cast("list[Any]", numbers if isinstance(numbers, list) else [])
    rows = cast("list[list[Any]]", listed if all(isinstance(row, list) for row in listed) else [])
    if not rows or not all(type(number) in {int, float} for row in rows for number in row):
        raise ValueError("vectors that are no rows of numbers")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("vectors of different lengths")
    tensor = torch.tensor(rows, dtype=torch.float64).float()
    if not bool(tensor.isfinite().all()):
        raise ValueError("values that are not finite")
    return tensor


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} for a number")
