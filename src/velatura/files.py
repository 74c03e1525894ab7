"""Files that are read where they are files, and written at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from secrets import token_hex
from shutil import rmtree

from velatura.errors import AlreadyExists, BadFile


@contextmanager
def open_for_reading(path: str | os.PathLike[str]) -> Generator[BufferedReader]:
    """Open a file to read it; a folder, a device or a pipe, which could be read without end, is refused."""
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "neither a file nor a directory"
        raise BadFile(f"{path} is {kind}: give the path of a file that can be read")
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:  # a path may hold what no path can
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadFile(f"{path}: {reason or error}: give the path of a file that can be read") from None


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Generator[Path]:
    """Give a path beside the wanted one to write to, and put it in place at the end; after an error nothing is left.

    Folders on the way are made. The file may be read and written by whom the umask allows.
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
    """Give a folder beside the wanted one to fill, and put it in place at the end; after an error nothing is left.

    The wanted one must be missing or empty.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise AlreadyExists(f"{path} holds something already: choose a new folder")
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}: choose another place") from None
    finally:
        rmtree(temporary, ignore_errors=True)
