"""The hashes by which people and programs tell files of weights apart, all in one reading of a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from velatura.files import EMPTY_OLD_HASH, OLD_HASH_WINDOW, hash_old_window

MIB = 2**20
MAX_HEADER_BYTES = 100_000_000  # of safetensors, by its specification


class Hashes(BaseModel):
    """A file's hashes: sha256 of all of it, body of what follows a safetensors header, old of 64 KiB behind a MiB.

    body is "" where there is no such header, old where there are no such bytes. Civitai calls the first ten digits of
    sha256 AutoV2, the first twelve of body AutoV3, and old AutoV1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    body: str = ""
    old: str = ""

    @classmethod
    def from_file(cls, path: Path) -> Hashes:
        """Read a file once and reckon them all."""
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
        """What each is called on Civitai, without those that there are not."""
        hashes = {"AutoV1": self.old, "AutoV2": self.sha256[:10], "AutoV3": self.body[:12]}
        return {name: digits for name, digits in hashes.items() if digits}

    def has(self, digits: str) -> bool:
        """Whether these are the first digits of one of them, or all of the old one."""
        return self.old == digits or self.sha256.startswith(digits) or self.body.startswith(digits)


def old_hash(path: Path) -> str:
    """The oldest hash alone, for which 64 KiB are read; "" where a file is too short for it."""
    digits = hash_old_window(path)
    return "" if digits == EMPTY_OLD_HASH else digits


def _body_start(start: bytes) -> int:
    """Where the tensors of safetensors begin, 0 for any other file."""
    length = int.from_bytes(start[:8], "little")
    return 8 + length if start[8:] == b"{" and length <= MAX_HEADER_BYTES else 0


def _overlap(block: bytes, offset: int, begin: int, end: int | None = None) -> memoryview:
    """What of a block that lies at a place of a file is between two others."""
    return memoryview(block)[max(begin - offset, 0) : None if end is None else max(end - offset, 0)]
