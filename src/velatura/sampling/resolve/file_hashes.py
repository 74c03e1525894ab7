"""The hashes that recipes record of the files of overlays, as A1111 writes them."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from velatura.files import short_hash
from velatura.formats.metadata import claimed_hashes
from velatura.library.hashes import Hashes
from velatura.overlays.lora.lora import Lora
from velatura.tensors import open_meta

LORA_HASH_DIGITS = 12  # digits of an entry of "Lora hashes"
TI_HASH_DIGITS = 12  # digits of an entry of "TI hashes"
LORA_HASH_KEY = "sshs_model_hash"


def overlay_file_hashes(kind: str, file: Path) -> tuple[str, ...]:
    """Return every hash by which a recipe may record the file of an overlay that a tag calls.

    For a LoRA these are the hash that its header claims, which A1111 writes, the hash of its tensors, and what LyCORIS
    writes into its header, which is not a hash of the tensors but which A1111 records all the same.

    Args:
        kind: The kind of the overlay, such as "lora".
        file: Its file. For a folder the result is empty.

    Returns:
        The hashes without duplicates, first the one to record.
    """
    if not file.is_file():
        return ()
    file_stat = file.stat()
    return _cached_hashes(kind, file, file_stat.st_mtime_ns, file_stat.st_size)


def embedding_file_hash(file: Path) -> str:
    """Return the hash by which A1111 records the file of an embedding that a prompt names."""
    file_stat = file.stat()
    return _cached_embedding_hash(file, file_stat.st_mtime_ns, file_stat.st_size)


@lru_cache(maxsize=1024)
def _cached_hashes(kind: str, file: Path, _modified_ns: int, _size: int) -> tuple[str, ...]:
    """Compute the hashes again only when the file has changed."""
    if kind != Lora.kind:
        return (short_hash(file),)
    file_hashes = Hashes.from_file(file)
    metadata = open_meta(file).metadata
    claims = (*claimed_hashes(metadata), file_hashes.body or file_hashes.sha256, metadata.get(LORA_HASH_KEY, ""))
    return tuple(dict.fromkeys(claim[:LORA_HASH_DIGITS] for claim in claims if claim))


@lru_cache(maxsize=1024)
def _cached_embedding_hash(file: Path, _modified_ns: int, _size: int) -> str:
    return sha256(file.read_bytes()).hexdigest()[:TI_HASH_DIGITS]
