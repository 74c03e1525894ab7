"""Safe reading of regular files, and atomic writing of files and folders."""

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
