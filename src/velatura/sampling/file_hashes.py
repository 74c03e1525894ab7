"""The hashes by which pictures say which files their overlays were read from, each kind by the webui's own rule."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from velatura.formats.optim import short_hash
from velatura.formats.said import claimed_hashes
from velatura.library.hashes import Hashes
from velatura.overlays.lora import Lora
from velatura.tensors.glimpse import glimpse

DIGITS = 12  # of a LoRA's, as in Lora hashes
CLAIM = "sshs_model_hash"


def hashes_of(kind: str, file: Path) -> tuple[str, ...]:
    """What an overlay's file may be recorded by, the first being what is written; none of a folder.

    A LoRA's is the hash of its tensors, the one that its header claims first of all, as the webui has it; what LyCORIS
    writes there is no such hash, and yet the webui records it.
    """
    if not file.is_file():
        return ()
    state = file.stat()
    return _hashes(kind, file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _hashes(kind: str, file: Path, _changed: int, _size: int) -> tuple[str, ...]:
    """The same, reckoned afresh when the file has changed."""
    if kind != Lora.kind:
        return (short_hash(file),)
    found = Hashes.of(file)
    said = glimpse(file).metadata
    claims = (*claimed_hashes(said), found.body or found.sha256, said.get(CLAIM, ""))
    return tuple(dict.fromkeys(each[:DIGITS] for each in claims if each))
