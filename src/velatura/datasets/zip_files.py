"""Zips of pictures and captions, which are unpacked into the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from velatura.card import printable_text
from velatura.datasets.pictures import PICTURE_SUFFIXES, names_folder_role, read_upright
from velatura.datasets.read_captions import CAPTION_SUFFIXES
from velatura.errors import AlreadyExists, BadDataset, BadFile, ignore_warnings, warn
from velatura.files import atomic_folder, hash_file, parse_json

if TYPE_CHECKING:
    from velatura.tensors.unpack_zip import UnpackedZip

ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # the second one begins an empty zip
LIST_SUFFIXES = (".json", ".jsonl", ".csv")
WANTED_SUFFIXES = PICTURE_SUFFIXES | {*CAPTION_SUFFIXES, *LIST_SUFFIXES}
CACHE_NAME, RECORD_NAME = "datasets", ".unpacked.json"  # of the folder in the cache, and of the warnings in each
HASH_LENGTH, MAX_KNOWN_HASHES = 16, 64
MAX_SHOWN_NAMES, MAX_SHOWN_CHARACTERS = 3, 40


def is_zip_file(path: Path) -> bool:
    """Return True for a zip, by its first bytes or by its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in ZIP_SIGNATURES or path.suffix.lower() == ".zip"


def unpack_dataset(path: Path) -> Path:
    """Unpack a zip of pictures and captions, once, and warn of what is left out.

    Pictures that cannot be read are left out. Other files than pictures and captions are not unpacked.

    Args:
        path: The zip.

    Returns:
        A folder in the cache, by the hash of the zip.

    Raises:
        BadDataset: The zip is damaged, could do harm, or has no picture that can be read.
    """
    from velatura.library.index import cache_folder  # torch comes with it, which a folder does not need

    try:
        folder = cache_folder(None) / CACHE_NAME / _hash_once(path)[:HASH_LENGTH]
        record = _read_record(folder)
        if record is None:
            _unpack(path, folder)
            record = _read_record(folder)
    except (OSError, BadFile, AlreadyExists) as error:
        raise BadDataset(f"{path} cannot be unpacked ({error}): unpack it yourself, and name the folder") from None
    assert record is not None
    for message in record.warnings:
        warn(f"{path} {message}")
    return folder


class UnpackRecord(NamedTuple):
    """What is stored about a zip that was unpacked: how many files it gave, and what is to be warned of."""

    file_count: int
    warnings: list[str]


def _hash_once(path: Path) -> str:
    """Return the hash of a file, which is computed once as long as the file stays unchanged."""
    state = path.stat()
    return _hash_of_state(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=MAX_KNOWN_HASHES)
def _hash_of_state(path: Path, *_: int) -> str:
    return hash_file(path)


def _read_record(folder: Path) -> UnpackRecord | None:
    """Return what is stored about an unpacked zip, None if it is not there, or files of it were removed."""
    try:
        stored: object = parse_json((folder / RECORD_NAME).read_bytes())
        record = UnpackRecord(**cast("dict[str, Any]", stored))
    except (OSError, ValueError, TypeError):
        return None
    return record if sum(path.is_file() for path in folder.rglob("*")) > record.file_count else None


def _unpack(path: Path, folder: Path) -> None:
    """Unpack a zip. Of two processes that do so at once, the second takes what the first has unpacked."""
    from velatura.tensors.unpack_zip import unpack_zip

    if folder.exists():  # a part of it was removed
        rmtree(folder)
    try:
        with atomic_folder(folder) as temporary:
            try:
                unpacked = unpack_zip(path, temporary, _is_wanted, names_folder_role)
            except ValueError as error:
                raise BadDataset(f"{path} {error}: do not trust it, or pack it again") from None
            pictures = [file for file in unpacked.files if file.suffix.lower() in PICTURE_SUFFIXES]
            if not pictures:
                raise BadDataset(f"{path} holds no pictures: pack some, each with a .txt file of its caption")
            broken = [file for file in pictures if not _is_readable(file)]
            if len(broken) == len(pictures):
                raise BadDataset(f"{path} holds {len(broken)} pictures, none of which can be read: pack it again")
            for file in broken:
                file.unlink()
            record = UnpackRecord(len(unpacked.files) - len(broken), list(_describe(unpacked, temporary, broken)))
            (temporary / RECORD_NAME).write_text(json.dumps(record._asdict()), "utf-8")
    except (BadFile, AlreadyExists):
        if _read_record(folder) is None:
            raise


def _is_wanted(name: str) -> bool:
    return Path(name).suffix.lower() in WANTED_SUFFIXES


def _is_readable(path: Path) -> bool:
    try:
        with ignore_warnings():  # which learning from it gives
            read_upright(path)
    except (BadDataset, BadFile):
        return False
    return True


def _describe(unpacked: UnpackedZip, folder: Path, broken: list[Path]) -> Iterator[str]:
    """Yield what is to be warned of, as the rest of sentences."""
    stems = {file.with_suffix("") for file in unpacked.files if file.suffix.lower() in PICTURE_SUFFIXES}
    stems |= {file for file in unpacked.files if file.suffix.lower() in PICTURE_SUFFIXES}  # of house.png.txt
    strays = [
        file for file in unpacked.files if file.suffix.lower() in CAPTION_SUFFIXES and file.with_suffix("") not in stems
    ]
    problems = {
        "has pictures that cannot be read, and are left out": [str(file.relative_to(folder)) for file in broken],
        "has names that some systems do not take, which are changed": unpacked.renamed,
        "has names that differ in upper and lower case only, of which the first is taken": unpacked.colliding,
        "has hidden files, which are left out": unpacked.hidden,
        "has files that are neither pictures nor captions, which are not opened": unpacked.ignored,
        "has captions without a picture": [str(file.relative_to(folder)) for file in strays],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(printable_text(name)[-MAX_SHOWN_CHARACTERS:] for name in names[:MAX_SHOWN_NAMES])
            more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
            yield f"{problem}: {shown}{more}"
