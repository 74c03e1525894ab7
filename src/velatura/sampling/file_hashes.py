"""The hashes by which pictures say which files their overlays were read from, each kind by the webui's own rule."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from velatura.formats.optim import short_hash
from velatura.formats.said import claimed_hashes
from velatura.library.hashes import Hashes
from velatura.overlays.lora import Lora
from velatura.tensors.glimpse import open_meta

LORA_HASH_DIGITS = 12  # of a LoRA's, as in Lora hashes
LORA_HASH_KEY = "sshs_model_hash"


def overlay_file_hashes(kind: str, file: Path) -> tuple[str, ...]:
    """What an overlay's file may be recorded by, the first being what is written; none of a folder.

    A LoRA's is the hash of its tensors, the one that its header claims first of all, as the webui has it; what LyCORIS
    writes there is no such hash, and yet the webui records it.
    """
    if not file.is_file():
        return ()
    file_stat = file.stat()
    return _cached_hashes(kind, file, file_stat.st_mtime_ns, file_stat.st_size)


@lru_cache(maxsize=1024)
def _cached_hashes(kind: str, file: Path, _modified_ns: int, _size: int) -> tuple[str, ...]:
    """The same, reckoned afresh when the file has changed."""
    if kind != Lora.kind:
        return (short_hash(file),)
    file_hashes = Hashes.from_file(file)
    metadata = open_meta(file).metadata
    claims = (*claimed_hashes(metadata), file_hashes.body or file_hashes.sha256, metadata.get(LORA_HASH_KEY, ""))
    return tuple(dict.fromkeys(claim[:LORA_HASH_DIGITS] for claim in claims if claim))
