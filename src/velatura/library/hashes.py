"""The hashes by which people and programs tell files of weights apart, all in one reading of a file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict

MIB = 2**20
WINDOW = (MIB, MIB + 2**16)  # what the oldest webuis hashed
NOTHING = "e3b0c442"  # their hash of a file that ends before the window
LONGEST_HEADER = 100_000_000  # of safetensors, by its specification


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
    def of(cls, path: Path) -> Hashes:
        """Read a file once and reckon them all."""
        whole, body, window = sha256(), sha256(), sha256()
        with path.open("rb") as file:
            begin = _body_begin(file.read(9))
            file.seek(0)
            at = 0
            while block := file.read(MIB):
                for digest, part in (
                    (whole, block),
                    (body, _part(block, at, begin)),
                    (window, _part(block, at, *WINDOW)),
                ):
                    digest.update(part)
                at += len(block)
        old = window.hexdigest()[:8]
        return cls(sha256=whole.hexdigest(), body=body.hexdigest() if begin else "", old="" if old == NOTHING else old)

    def shown(self) -> dict[str, str]:
        """What each is called on Civitai, without those that there are not."""
        found = {"AutoV1": self.old, "AutoV2": self.sha256[:10], "AutoV3": self.body[:12]}
        return {name: each for name, each in found.items() if each}

    def has(self, digits: str) -> bool:
        """Whether these are the first digits of one of them, or all of the old one."""
        return self.old == digits or self.sha256.startswith(digits) or self.body.startswith(digits)


def old_hash(path: Path) -> str:
    """The oldest hash alone, for which 64 KiB are read; "" where a file is too short for it."""
    with path.open("rb") as file:
        file.seek(WINDOW[0])
        found = sha256(file.read(WINDOW[1] - WINDOW[0])).hexdigest()[:8]
    return "" if found == NOTHING else found


def _body_begin(start: bytes) -> int:
    """Where the tensors of safetensors begin, 0 for any other file."""
    length = int.from_bytes(start[:8], "little")
    return 8 + length if start[8:] == b"{" and length <= LONGEST_HEADER else 0


def _part(block: bytes, at: int, begin: int, end: int | None = None) -> memoryview:
    """What of a block that lies at a place of a file is between two others."""
    return memoryview(block)[max(begin - at, 0) : None if end is None else max(end - at, 0)]
