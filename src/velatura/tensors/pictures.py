"""Tensors in pictures, A1111's format for sharing embeddings: in a text chunk of a PNG, or in pixels at both sides.

Every fault is a ValueError whose message continues "FILE ...".
"""

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

from velatura.files import refuse_duplicate_keys
from velatura.image_files import open_image
from velatura.png_files import CRC_BYTES, PNG_SIGNATURE, PNG_TEXT_CHUNKS, png_chunks, split_png_text

TEXT_KEY = "sd-ti-embedding"
TENSOR_KEY = "TORCHTENSOR"
CUT_SHORT = "is cut short: its end is missing"
MAX_TEXT_BYTES = 2**23  # bytes: 75 vectors of an SD2 take 2 MB
MAX_PIXELS = 2**24
PILLOW_FEATURES = {"WebP": "webp", "AVIF": "avif"}  # formats that Pillow may have been built without
JPEG_XL_SIGNATURES = b"\xff\x0a", b"\x00\x00\x00\x0cJXL "  # codestream, and container
LOW_BITS = 0x0F
ZLIB_MAGIC = b"\x78"

PixelBlock = npt.NDArray[np.uint8]


def is_picture(start: bytes) -> bool:
    """Return True if a file with these first 12 bytes is a picture that can hold tensors: PNG, WebP or AVIF."""
    return start[:8] == PNG_SIGNATURE or _format_name(start) in PILLOW_FEATURES


def unsupported_format(start: bytes) -> str:
    """Return the picture format of these first 12 bytes if it can hold tensors but Pillow cannot read it, else ""."""
    kind = _format_name(start)
    is_readable = kind in PILLOW_FEATURES and features.check(PILLOW_FEATURES[kind])
    return "" if is_readable else kind


def _format_name(start: bytes) -> str:
    if (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
        return "WebP"
    if start[4:12] == b"ftypavif":
        return "AVIF"
    return "JPEG XL" if start.startswith(JPEG_XL_SIGNATURES) else ""


def read(data: bytes) -> dict[object, object]:
    """Return the embedding that A1111 wrote into a picture, or {}.

    Raises:
        ValueError: if the embedding or the picture is damaged.
    """
    text = _embedded_text(data) if data[:8] == PNG_SIGNATURE else None
    try:
        encoded = _read_low_bits(data) if text is None else base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise ValueError(f"has a {TEXT_KEY} text that is not valid base64") from None
    return {} if encoded is None else _parse_payload(encoded)


def write(picture: Image.Image, payload: Mapping[str, object]) -> bytes:
    """Return a PNG with a dict in a text chunk, in which tensors are lists of numbers."""
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
    """Return the PNG's text under the embedding's key, or None."""
    candidates = {_chunk_text(kind, body) for kind, body in _chunks(data) if kind in PNG_TEXT_CHUNKS}
    texts = {text for text in candidates if text is not None}
    if len(texts) > 1:
        raise ValueError(f"has several {TEXT_KEY} texts that differ")
    return next(iter(texts), None)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the chunks of a PNG up to IEND, and verify their checksums."""
    file, kind = io.BytesIO(data), b""
    for kind, length in png_chunks(file):
        body, checksum = file.read(length), file.read(CRC_BYTES)
        if len(checksum) != CRC_BYTES:
            raise ValueError(CUT_SHORT)
        if zlib.crc32(kind + body) != int.from_bytes(checksum):
            raise ValueError(f"is damaged: the checksum of its chunk {kind.decode('latin1')!r} is wrong")
        yield kind, body
    if kind != b"IEND":
        raise ValueError(CUT_SHORT)


def _chunk_text(kind: bytes, body: bytes) -> bytes | None:
    """Return the text of a text chunk if it has the embedding's key, else None."""
    key, text, is_compressed = split_png_text(kind, body)
    if key != TEXT_KEY.encode() or b"\0" not in body:
        return None
    return _inflate(text) if is_compressed else text


def _read_low_bits(data: bytes) -> bytes | None:
    """Return the bytes in the low bits of the pixel blocks to the left and to the right of a picture, or None."""
    pixels = _pixels(data)
    gaps = np.flatnonzero(~(pixels & LOW_BITS).any(axis=(0, 2)))
    if len(gaps) < 2:
        return None
    low, high = (_remove_mask(block) & LOW_BITS for block in (pixels[:, : gaps[0]], pixels[:, gaps[-1] + 1 :]))
    packed = (high << 4 | low).tobytes() if low.shape == high.shape else b""
    return _inflate(packed) if packed[:1] == ZLIB_MAGIC else None


def _pixels(data: bytes) -> PixelBlock:
    """Return the pixels of a picture without its black frame, (height, width, 3)."""
    try:
        with open_image(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"is a picture of {image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,}")
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is a damaged picture") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(f"is a picture that cannot be read ({error})") from None
    rows = np.flatnonzero(pixels.any(axis=(1, 2)))
    columns = np.flatnonzero(pixels.any(axis=(0, 2)))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def _remove_mask(block: PixelBlock) -> PixelBlock:
    """Flatten a block, and undo the XOR with A1111's pseudo-random numbers."""
    return block.reshape(-1) ^ (_lcg_numbers(block.size) % 255 & LOW_BITS).astype(np.uint8)


def _lcg_numbers(count: int) -> npt.NDArray[np.uint64]:
    """Return the first numbers of the linear congruential generator x = 1664525 x + 1013904223 mod 2**32, from x = 0.

    Every pass doubles the sequence: factor and increment are those of as many steps as there are numbers.
    """
    factor, increment = 1664525, 1013904223
    numbers = np.array([1013904223], np.uint64)
    while len(numbers) < count:
        next_numbers = (numbers * np.uint64(factor) + np.uint64(increment)) % np.uint64(2**32)
        numbers = np.concatenate([numbers, next_numbers])
        increment = (factor + 1) * increment % 2**32
        factor = factor * factor % 2**32
    return numbers[:count]


def _inflate(packed: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        raise ValueError("has damaged compressed data") from None
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise ValueError(f"has compressed data that is cut short, or larger than {MAX_TEXT_BYTES:,} bytes")
    return text


def _parse_payload(encoded: bytes) -> dict[object, object]:
    try:
        payload: object = json.loads(
            encoded.decode(),
            object_pairs_hook=lambda pairs: _decode_tensor(refuse_duplicate_keys(pairs)),
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else "it is nested too deeply"
        raise ValueError(f"has an embedding that cannot be read ({reason})") from None
    if not isinstance(payload, dict):
        raise ValueError("has an embedding that is not a dict")
    return cast("dict[object, object]", payload)


def _decode_tensor(decoded: dict[str, Any]) -> object:
    """Return a tensor for a dict of the form {"TORCHTENSOR": rows of numbers}; return other dicts unchanged."""
    if decoded.keys() != {TENSOR_KEY}:
        return decoded
    numbers = decoded[TENSOR_KEY]
    listed = cast("list[Any]", numbers if isinstance(numbers, list) else [])
    rows = cast("list[list[Any]]", listed if all(isinstance(row, list) for row in listed) else [])
    if not rows or not all(type(number) in {int, float} for row in rows for number in row):
        raise ValueError("vectors that are not rows of numbers")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("vectors of different lengths")
    tensor = torch.tensor(rows, dtype=torch.float64).float()
    if not bool(tensor.isfinite().all()):
        raise ValueError("values that are NaN or infinite")
    return tensor


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} in place of a number")
