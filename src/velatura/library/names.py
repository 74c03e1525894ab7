"""The names and hashes by which a library finds files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from velatura.errors import UnknownName
from velatura.library.entry import LibraryEntry
from velatura.library.model_files import RUN_LOG, SNAPSHOT_FOLDER, ModelFile

# AutoV1 has 8 digits, AutoV2 10 and AutoV3 12, SHA-256 64
HASH_PATTERN = re.compile(r"(?:0x)?([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{12}|[0-9a-f]{64})")
TITLE_PATTERN = re.compile(r"(?P<name>.+) \[(?P<hash>[0-9a-f]{8,64})\]", re.IGNORECASE)  # A1111's titles of checkpoints

OTHER_FOLDER_ADVICE = "if it is in another folder, name that with --library (in Python, library=Library(...))"


def fold_name(name: str) -> str:
    """Return a name in a form for comparison, as systems store letters with accents differently."""
    return unicodedata.normalize("NFC", name).casefold()


def has_alias(entry: LibraryEntry, folded_name: str) -> bool:
    """Return True if the file or its notes give an entry this name, as `fold_name` returns it."""
    return folded_name in {*map(fold_name, entry.aliases), entry.civitai_key or None}


def normalize_path(name: str) -> str:
    """Return a name or path in a form for comparison: folded, with "/" between its parts as on any system."""
    return "/".join(part for part in fold_name(name).replace("\\", "/").split("/") if part not in {"", "."})


def is_called(file: ModelFile, name: str) -> bool:
    """Return True if a name means a file: its stem, or any number of whole parts at the end of its path.

    Args:
        file: A file, or a folder in diffusers' or peft's layout.
        name: The name, as `normalize_path` returns it, with or without the file's ending.
    """
    if not name:
        return False
    full_path = file.path.absolute()
    paths = (full_path,) if file.is_folder else (full_path, full_path.with_name(file.name))
    return any(f"/{normalize_path(str(path))}".endswith(f"/{name}") for path in paths)


def is_whole_path(file: ModelFile, name: str) -> bool:
    """Return True if a name with folders in it is all of a file's path below the library's folder."""
    relative = normalize_path(file.relative_name)
    ending = "" if file.is_folder else fold_name(file.path.suffix)
    return "/" in name and name in {relative, relative + ending}


def has_exact_case(file: ModelFile, name: str) -> bool:
    """Return True if the last part of a name is in the same upper and lower case as the file."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    return last in {unicodedata.normalize("NFC", text) for text in (file.name, file.path.name)}


def model_key(entry: LibraryEntry) -> tuple[str, str]:
    """Return a key that is equal for files of one model in several formats."""
    return entry.kind, os.path.realpath(entry.path.with_suffix(""))


def suggest_run(name: str) -> str:
    """Return advice for a name that no file has: the folder of a run below this one that has it, or else --library."""
    stem = name.rpartition("/")[2].rpartition("\\")[2]
    if not re.fullmatch(r"[^*?\[\]]{1,200}", stem) or not stem.isprintable():  # no pattern, and possible in a path
        return OTHER_FOLDER_ADVICE
    for pattern in (f"runs/*/{stem}.safetensors", f"runs/*/{SNAPSHOT_FOLDER}/{stem}.safetensors"):
        for path in sorted(Path().glob(pattern)):
            run = next(parent for parent in path.parents if parent.name != SNAPSHOT_FOLDER)
            if (run / RUN_LOG).is_file():
                return f"the run {run} has it: add --library {run} (in Python, library=Library({str(run)!r}))"
    if (Path("runs", stem) / RUN_LOG).is_file():
        run = Path("runs", stem)
        return f"the run {run} is not finished: continue it with `velatura resume {run}`, or use one of its snapshots"
    return OTHER_FOLDER_ADVICE


def has_hash(entry: LibraryEntry, digits: str) -> bool:
    """Return True if a hash of an entry begins with these digits.

    The hash may be computed, or claimed in the file or its notes.
    """
    claimed_hashes = (*entry.info.claimed_hashes, *entry.notes.hashes)
    if any(claimed_hash.startswith(digits) for claimed_hash in claimed_hashes):
        return True
    return entry.hashes is not None and entry.hashes.has(digits)


def unknown_name_error(label: str, name: str, known: Collection[str], folders: str, advice: str = "") -> UnknownName:
    """Return the error for a name that no folder has: similar names, and where else it may be.

    Args:
        label: What was looked for, such as "base".
        name: The name.
        known: Names of that kind in the folders.
        folders: The folders, in words.
        advice: What else to do, in words that go on a sentence; none: what `suggest_run` advises.
    """
    advice = advice or suggest_run(name)
    if not known:
        return UnknownName(f"no {label} is called {name!r} in {folders}: {advice}")
    error = UnknownName.with_suggestions(label, name, known, folders)
    is_question = str(error).endswith("?")
    return UnknownName(f"{error} {advice[0].upper()}{advice[1:]}" if is_question else f"{error}; {advice}")
