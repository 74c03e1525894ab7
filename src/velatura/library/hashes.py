"""The hashes by which people and programs identify files of weights, computed in one reading of a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from velatura.files import EMPTY_OLD_HASH, OLD_HASH_WINDOW, hash_old_window

MIB = 2**20
MAX_HEADER_BYTES = 100_000_000  # of a safetensors header, by its specification


class Hashes(BaseModel):
    """Hashes of a file, as hexadecimal digits.

    Attributes:
        sha256: SHA-256 of the whole file; its first ten digits are Civitai's AutoV2.
        body: SHA-256 of what follows a safetensors header, "" for other files; its first twelve digits are AutoV3.
        old: The first eight digits of the SHA-256 of 64 KiB from 1 MiB on, AutoV1; "" for shorter files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    body: str = ""
    old: str = ""

    @classmethod
    def from_file(cls, path: Path) -> Hashes:
        """Read a file once and compute all hashes; raises OSError."""
        whole, body, window = sha256(), sha256(), sha256()
        with path.open("rb") as file:
            body_start = _body_start(file.read(9))
            file.seek(0)
            offset = 0
            while block := file.read(MIB):
                for digest, piece in (
                    (whole, block),
                    (body, _overlap(block, offset, body_start)),
                    (window, _overlap(block, offset, *OLD_HASH_WINDOW)),
                ):
                    digest.update(piece)
                offset += len(block)
        old = window.hexdigest()[:8]
        return cls(
            sha256=whole.hexdigest(),
            body=body.hexdigest() if body_start else "",
            old="" if old == EMPTY_OLD_HASH else old,
        )

    def by_civitai_name(self) -> dict[str, str]:
        """Return the hashes that there are, by Civitai's names."""
        hashes = {"AutoV1": self.old, "AutoV2": self.sha256[:10], "AutoV3": self.body[:12]}
        return {name: digits for name, digits in hashes.items() if digits}

    def has(self, digits: str) -> bool:
        """Return True if a hash begins with these digits; the old one must have all of them."""
        return self.old == digits or self.sha256.startswith(digits) or self.body.startswith(digits)


def old_hash(path: Path) -> str:
    """Return the oldest hash alone, which reads only 64 KiB; "" if the file is too short for it."""
    digits = hash_old_window(path)
    return "" if digits == EMPTY_OLD_HASH else digits


def _body_start(start: bytes) -> int:
    """Return the offset of the tensors in a safetensors file, 0 for any other file."""
    length = int.from_bytes(start[:8], "little")
    return 8 + length if start[8:] == b"{" and length <= MAX_HEADER_BYTES else 0


def _overlap(block: bytes, offset: int, begin: int, end: int | None = None) -> memoryview:
    """Return the part of a block, which starts at an offset of the file, between two offsets of the file."""
    return memoryview(block)[max(begin - offset, 0) : None if end is None else max(end - offset, 0)]
