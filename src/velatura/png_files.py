"""What Pillow does not check in a PNG: the checksums of its pixels, and that they are all there."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

SIGNATURE_BYTES = 8
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


def has_wrong_checksum(path: Path) -> bool:
    """Return True if a chunk of a PNG has a wrong checksum."""
    with path.open("rb") as file:
        for kind, length in _chunks(file):
            checksum = zlib.crc32(kind)
            for part in _parts(file, length):
                checksum = zlib.crc32(part, checksum)
            if file.read(4) != checksum.to_bytes(4):
                return True
    return False


def has_all_pixels(path: Path) -> bool:
    """Return True if the compressed data of a PNG holds all of its pixels. It is decompressed for that."""
    with path.open("rb") as file:
        chunks = _chunks(file)
        kind, _ = next(chunks, (b"", 0))
        if kind != b"IHDR":
            return False
        width, height, (bits, colour_type, _, _, interlace) = file.read(4), file.read(4), file.read(5)
        header = PngHeader(int.from_bytes(width), int.from_bytes(height), bits, colour_type, interlace == 1)
        file.seek(4, 1)
        return sum(_inflated_counts(file, chunks)) >= header.byte_count


def _inflated_counts(file: BinaryIO, chunks: Iterator[tuple[bytes, int]]) -> Iterator[int]:
    """Yield the numbers of bytes that the compressed pixels grow to, a part after the other."""
    inflater = zlib.decompressobj()
    for kind, length in chunks:
        if kind == b"IDAT":
            for part in _parts(file, length):
                yield len(inflater.decompress(part, READ_BYTES))
                while inflater.unconsumed_tail:
                    yield len(inflater.decompress(inflater.unconsumed_tail, READ_BYTES))
        file.seek(4 if kind == b"IDAT" else length + 4, 1)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield kind and length of the chunks; the file then stands at the chunk's content."""
    file.seek(SIGNATURE_BYTES)
    while len(header := file.read(8)) == 8:
        yield header[4:], int.from_bytes(header[:4])
        if header[4:] == b"IEND":
            return


def _parts(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (part := file.read(min(length, READ_BYTES))):
        length -= len(part)
        yield part
