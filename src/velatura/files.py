"""Safe reading of regular files and of JSON, atomic writing, and the hashes that A1111 knows files by."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from secrets import token_hex
from shutil import rmtree

from velatura.errors import AlreadyExists, BadFile

SHORT_HASH_LENGTH = 10
OLD_HASH_LENGTH = 8
OLD_HASH_WINDOW = (0x100000, 0x110000)  # first byte, and the byte after the last
EMPTY_OLD_HASH = "e3b0c442"  # of no bytes at all
MAX_SUGGESTIONS = 3
MIN_SIMILARITY = 0.6  # of two names, as difflib measures it
MAX_SHOWN_KEY_LENGTH = 40  # characters of a stranger's text in a message
DRIVE = re.compile("[A-Za-z]:")
PATH_OUTSIDE = re.compile(r"(?:.*[/\\])?\.\.(?:[/\\].*)?|[/\\].*|~[/\\].*|[A-Za-z]:[/\\].*", re.DOTALL)


def is_path_outside(name: str) -> bool:
    r"""Return True for a name that is a path out of its folder on some system: ../x, /x, ~/x or C:\x."""
    return PATH_OUTSIDE.fullmatch(name) is not None


def has_drive(path: str) -> bool:
    r"""Return True for a path that begins with a drive of Windows, C:\x or C:x."""
    return DRIVE.match(path) is not None


def suggest_similar(path: str | os.PathLike[str], others: Iterable[str] = ()) -> str:
    """Return " (did you mean inca.pt?)" for a path that does not exist, "" if nothing beside it has a similar name.

    Args:
        path: The path. If its folder does not exist either, folders of a similar name are looked into.
        others: Names that could be meant besides the files and folders.
    """
    similar = [*map(str, _similar_paths(Path(path))), *_similar_names(Path(path).stem, others)][:MAX_SUGGESTIONS]
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""


def _similar_paths(path: Path) -> list[Path]:
    folder = path.parent
    if folder != path and not folder.is_dir():
        return [found for similar in _similar_paths(folder) if (found := similar / path.name).exists()]
    names: list[str] = []
    with suppress(OSError):
        names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return [folder / name for name in _similar_names(path.stem, names)]


def _similar_names(stem: str, names: Iterable[str]) -> list[str]:
    """Return the names whose stems are like a stem, whatever their case and their suffix, the most similar first."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(names):
        by_stem.setdefault(Path(name).stem.casefold(), []).append(name)
    stems = get_close_matches(stem.casefold(), by_stem, n=MAX_SUGGESTIONS, cutoff=MIN_SIMILARITY)
    return [name for found in stems for name in by_stem[found]]


@contextmanager
def open_for_reading(path: str | os.PathLike[str]) -> Generator[BufferedReader]:
    """Open a regular file for reading.

    Raises:
        BadFile: if the path is a folder, a device or a pipe (which might never end), or cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "neither a file nor a directory"
        raise BadFile(f"{path} is {kind}: give the path of a file that can be read")
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadFile(f"{path}: {reason or error}: give the path of a file that can be read") from None


def parse_json(text: str | bytes) -> object:
    """Parse JSON as its standard asks: UTF-8 (a byte order mark is skipped), and no key twice in an object.

    Python's own parser also takes UTF-16, and of two equal keys the last, where other programs may take the first.

    Raises:
        ValueError: The text is not JSON, not UTF-8, or has a key twice in one object.
        RecursionError: It is nested too deeply.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    return json.loads(text, object_pairs_hook=refuse_duplicate_keys)


def is_unset(value: object) -> bool:
    """Return True for a value of JSON that sets nothing: null, false, or an empty text, list or object."""
    return value is None or value is False or value in ("", [], {})


def refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs of a JSON object as a dict, for json's object_pairs_hook.

    Raises:
        ValueError: A key is there twice.
    """
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"it has the key {key[:MAX_SHOWN_KEY_LENGTH]!r} twice in one object")
        fields[key] = value
    return fields


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary path beside the target, and rename it to the target at the end.

    After an error the temporary file is deleted and the target is as before. Missing folders are created. The file's
    permissions follow the umask.

    Raises:
        BadFile: if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}: choose another place") from None
    finally:
        if temporary.is_file():
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary folder beside the target, and rename it to the target at the end.

    After an error the temporary folder is deleted.

    Raises:
        AlreadyExists: if the target is a file, or a folder that is not empty.
        BadFile: if the folder cannot be written.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise AlreadyExists(f"{path} already exists and is not empty: choose a new folder")
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}: choose another place") from None
    finally:
        rmtree(temporary, ignore_errors=True)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in 64 hex digits.

    Raises:
        BadFile: if the file cannot be read.
    """
    with open_for_reading(path) as file:
        return file_digest(file, "sha256").hexdigest()


def short_hash(path: str | os.PathLike[str]) -> str:
    """Return the hash by which A1111 shows and matches files: the first ten hex digits of the SHA-256.

    Raises:
        BadFile: if the file cannot be read.
    """
    return hash_file(path)[:SHORT_HASH_LENGTH]


def hash_old_window(path: str | os.PathLike[str]) -> str:
    """Return the hash that A1111 used until January 2023: eight hex digits for 64 KiB after the first MiB.

    Files that end before have EMPTY_OLD_HASH, which tells nothing.

    Raises:
        BadFile: if the file cannot be read.
    """
    start, end = OLD_HASH_WINDOW
    with open_for_reading(path) as file:
        file.seek(start)
        return sha256(file.read(end - start)).hexdigest()[:OLD_HASH_LENGTH]
