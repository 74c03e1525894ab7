"""Chunks of PNG files, and what Pillow does not check: the checksums of pixels, and that they are all there."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRC_BYTES = 4
PNG_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
READ_BYTES = 2**20  # of a chunk, at once
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type
# First column and row of each pass of an interlaced picture, and the distances to the next (PNG, 8.2)
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class PngHeader(NamedTuple):
    """The header of a PNG."""

    width: int
    height: int
    bits: int
    colour_type: int
    is_interlaced: bool

    @property
    def byte_count(self) -> int:
        """Return the bytes of the pixels before compression, with a byte for the filter of each row."""
        if not self.is_interlaced:
            return self._pass_bytes(self.width, self.height)
        return sum(
            self._pass_bytes(-(-(self.width - left) // across), -(-(self.height - top) // down))
            for left, top, across, down in PASSES
        )

    def _pass_bytes(self, columns: int, rows: int) -> int:
        bits = columns * self.bits * CHANNELS.get(self.colour_type, 0)
        return max(0, rows) * (1 + (bits + 7) // 8) if columns > 0 else 0


class PngChunk(NamedTuple):
    """A chunk of a PNG: its kind, such as IHDR, and the number of bytes of its content."""

    kind: bytes
    length: int


def png_chunks(file: BinaryIO) -> Iterator[PngChunk]:
    """Yield the chunks of a PNG up to IEND, behind which nothing belongs to the picture.

    Args:
        file: The PNG. At each chunk it stands at the content, and any number of bytes may be read from there. A file
            that ends early ends the chunks; one that does not begin as a PNG has none.
    """
    file.seek(0)
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        return
    while len(header := file.read(8)) == 8:
        chunk = PngChunk(header[4:], int.from_bytes(header[:4]))
        end = file.tell() + chunk.length + CRC_BYTES
        yield chunk
        if chunk.kind == b"IEND":
            return
        file.seek(end)


def split_png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes, bool]:
    """Return the key and the text of a text chunk, and whether the text is compressed.

    Args:
        kind: One of PNG_TEXT_CHUNKS.
        body: The content of the chunk.
    """
    key, _, rest = body.partition(b"\0")
    if kind == b"tEXt":
        return key, rest, False
    if kind == b"zTXt":
        return key, rest[1:], True
    text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # after the language and the translated key
    return key, text, rest[:1] == b"\1"


def has_wrong_checksum(path: Path) -> bool:
    """Return True if a chunk of a PNG has a wrong checksum."""
    with path.open("rb") as file:
        for kind, length in png_chunks(file):
            checksum = zlib.crc32(kind)
            for part in _parts(file, length):
                checksum = zlib.crc32(part, checksum)
            if file.read(CRC_BYTES) != checksum.to_bytes(4):
                return True
    return False


def has_all_pixels(path: Path) -> bool:
    """Return True if the compressed data of a PNG holds all of its pixels. It is decompressed for that."""
    with path.open("rb") as file:
        chunks = png_chunks(file)
        kind, _ = next(chunks, (b"", 0))
        if kind != b"IHDR":
            return False
        width, height, (bits, colour_type, _, _, interlace) = file.read(4), file.read(4), file.read(5)
        header = PngHeader(int.from_bytes(width), int.from_bytes(height), bits, colour_type, interlace == 1)
        missing = header.byte_count
        for count in _inflated_counts(file, chunks):
            missing -= count
            if missing <= 0:  # what follows, however long, is not part of the picture
                break
    return missing <= 0


def _inflated_counts(file: BinaryIO, chunks: Iterator[PngChunk]) -> Iterator[int]:
    """Yield the numbers of bytes that the compressed pixels grow to, a part after the other."""
    inflater = zlib.decompressobj()
    for kind, length in chunks:
        if kind != b"IDAT":
            continue
        for part in _parts(file, length):
            yield len(inflater.decompress(part, READ_BYTES))
            while inflater.unconsumed_tail:
                yield len(inflater.decompress(inflater.unconsumed_tail, READ_BYTES))


def _parts(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (part := file.read(min(length, READ_BYTES))):
        length -= len(part)
        yield part
