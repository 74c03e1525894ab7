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

PNG = b"\x89PNG\r\n\x1a\n"
TEXT_KEY = "sd-ti-embedding"
TENSOR_KEY = "TORCHTENSOR"
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
MOST_TEXT = 2**23  # bytes: 75 vectors of an SD2 take 2 MB
MOST_PIXELS = 2**24
READ_BY = {"WebP": "webp", "AVIF": "avif"}  # what Pillow calls the parts that it may have been built without
JPEG_XL = b"\xff\x0a", b"\x00\x00\x00\x0cJXL "  # bare, and in its container
LOW = 0x0F
ZLIB = b"\x78"  # how all that zlib packs begins

Block = npt.NDArray[np.uint8]


def is_picture(start: bytes) -> bool:
    """Whether a file that starts so is a picture that may hold tensors: a PNG, a WebP or an AVIF."""
    return start[:8] == PNG or _kind(start) in READ_BY


def unreadable(start: bytes) -> str:
    """The kind of picture that may hold tensors, and starts so, but cannot be read here; "" of all else."""
    kind = _kind(start)
    return kind if kind and not (kind in READ_BY and features.check(READ_BY[kind])) else ""


def _kind(start: bytes) -> str:
    if (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
        return "WebP"
    if start[4:12] == b"ftypavif":
        return "AVIF"
    return "JPEG XL" if start.startswith(JPEG_XL) else ""


def read(data: bytes) -> dict[object, object]:
    """What the webui put into a picture, {} if nothing; raises ValueError where that is damaged."""
    text = _text(data) if data[:8] == PNG else None
    try:
        written = _hidden(data) if text is None else base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"has a {TEXT_KEY} that is no base64") from None
    return {} if written is None else _parsed(written)


def write(picture: Image.Image, payload: Mapping[str, object]) -> bytes:
    """A PNG of a picture with a dict in it, whose tensors are written out as numbers."""
    written = json.dumps(payload, default=_as_numbers).encode()
    told = PngImagePlugin.PngInfo()
    told.add_text(TEXT_KEY, base64.b64encode(written).decode())
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=told)
    return file.getvalue()


def _as_numbers(tensor: object) -> dict[str, object]:
    assert isinstance(tensor, Tensor)
    return {TENSOR_KEY: cast("object", tensor.detach().float().cpu().numpy().tolist())}


def _text(data: bytes) -> bytes | None:
    """What stands under the key in a PNG's texts."""
    found = {text for kind, body in _chunks(data) if kind in TEXTS and (text := _said(kind, body)) is not None}
    if len(found) > 1:
        raise ValueError(f"has several {TEXT_KEY} that differ")
    return next(iter(found), None)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG up to its end, each with its checksum right."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(checksum) != 4:
            raise ValueError("ends before its picture does, so it is cut short")
        if zlib.crc32(kind + body) != int.from_bytes(checksum):
            raise ValueError(f"has a wrong checksum in its {kind.decode('latin1')!r}, so it is damaged")
        yield kind, body
        at += 12 + length


def _said(kind: bytes, body: bytes) -> bytes | None:
    """The text of a chunk, if it is the one that is looked for."""
    key, separator, rest = body.partition(b"\0")
    if not separator or key != TEXT_KEY.encode():
        return None
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflated(rest[1:])
    packed, rest = rest[:1], rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and translated key
    return _inflated(rest) if packed == b"\1" else rest


def _hidden(data: bytes) -> bytes | None:
    """What lies in the low bits of the blocks to the left and to the right of a picture."""
    pixels = _pixels(data)
    gaps = np.flatnonzero(~(pixels & LOW).any(axis=(0, 2)))
    if len(gaps) < 2:
        return None
    low, high = (_unmasked(block) & LOW for block in (pixels[:, : gaps[0]], pixels[:, gaps[-1] + 1 :]))
    packed = (high << 4 | low).tobytes() if low.shape == high.shape else b""
    return _inflated(packed) if packed[:1] == ZLIB else None


def _pixels(data: bytes) -> Block:
    """The pixels of a picture within its black frame, (height, width, 3)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"is a picture of {image.width} x {image.height} pixels, too large to look into")
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is a picture that cannot be read (it is damaged)") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(f"is a picture that cannot be read ({error})") from None
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in ((1, 2), (0, 2)))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def _unmasked(block: Block) -> Block:
    """A block in a row, without the noise of a linear congruential generator that lies over it."""
    return block.reshape(-1) ^ (_congruent(block.size) % 255 & LOW).astype(np.uint8)


def _congruent(count: int) -> npt.NDArray[np.uint64]:
    """The first numbers of x = 1664525 x + 1013904223 modulo 2**32, from 0 on: twice as many at each turn."""
    factor, summand, numbers = 1664525, 1013904223, np.array([1013904223], np.uint64)
    while len(numbers) < count:
        later = (numbers * np.uint64(factor) + np.uint64(summand)) % np.uint64(2**32)
        numbers = np.concatenate([numbers, later])
        factor, summand = factor * factor % 2**32, (factor + 1) * summand % 2**32
    return numbers[:count]


def _inflated(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, MOST_TEXT)
    except zlib.error:
        raise ValueError("has something packed in it that is damaged") from None
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError(f"has a text that is cut short, or of more than {MOST_TEXT:,} bytes")
    return text


def _parsed(written: bytes) -> dict[object, object]:
    try:
        found: object = json.loads(written, object_hook=_tensor, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:100] if str(error) else "it is nested too deeply"
        raise ValueError(f"has an embedding that cannot be read ({said})") from None
    if not isinstance(found, dict):
        raise ValueError("has an embedding that is no dict")
    return cast("dict[object, object]", found)


def _tensor(found: dict[str, Any]) -> object:
    """A tensor of its numbers, or the dict that it is."""
    if found.keys() != {TENSOR_KEY}:
        return found
    numbers = found[TENSOR_KEY]
    listed = cast("list[Any]", numbers if isinstance(numbers, list) else [])
    rows = cast("list[list[Any]]", listed if all(isinstance(each, list) for each in listed) else [])
    if not rows or not all(type(each) in {int, float} for row in rows for each in row):
        raise ValueError("vectors that are no rows of numbers")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("vectors of different lengths")
    tensor = torch.tensor(rows, dtype=torch.float64).float()
    if not bool(tensor.isfinite().all()):
        raise ValueError("values that are not finite")
    return tensor


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} for a number")
