"""The names and hashes by which a library finds files."""

from __future__ import annotations

import os
import re
import unicodedata

from velatura.library.entry import LibraryEntry
from velatura.library.model_files import ModelFile

# AutoV1 has 8 digits, AutoV2 10 and AutoV3 12, SHA-256 64
HASH_PATTERN = re.compile(r"(?:0x)?([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})")
TITLE_PATTERN = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{8,64})\]", re.IGNORECASE)  # A1111's titles of checkpoints


def fold_name(name: str) -> str:
    """Return a name in a form for comparison, as systems store letters with accents differently."""
    return unicodedata.normalize("NFC", name).casefold()


def possible_names(file: ModelFile) -> set[str]:
    """Return the names of a file: its stem, its name, and its path in the folder with and without the suffix."""
    relative_path = file.relative_name if file.is_folder else file.relative_name + file.path.suffix
    return {fold_name(name) for name in (file.name, file.path.name, file.relative_name, relative_path)}


def model_key(entry: LibraryEntry) -> tuple[str, str]:
    """Return a key that is equal for files of one model in several formats."""
    return entry.kind, os.path.realpath(entry.path.with_suffix(""))


def has_hash(entry: LibraryEntry, digits: str) -> bool:
    """Return True if a hash of an entry begins with these digits.

    The hash may be computed, or claimed in the file or its notes.
    """
    claimed_hashes = (*entry.info.claimed_hashes, *entry.notes.hashes)
    if any(claimed_hash.startswith(digits) for claimed_hash in claimed_hashes):
        return True
    return entry.hashes is not None and entry.hashes.has(digits)
