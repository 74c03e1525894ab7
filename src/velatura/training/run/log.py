"""Durable files of a run: written atomically and flushed to disk, with a log that locks the run."""

from __future__ import annotations

import copy
import errno
import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from filelock import FileLock, Timeout

from velatura.errors import AlreadyExists, BadFile

TEMP_PREFIX = ".velatura-"  # of the hidden folders in which files are written
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
LOCK_NAME = ".lock"  # beside the log


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Yield a path to write to in a hidden folder, then flush the file to disk and move it to its place.

    After a crash or a power cut there is either the old file or the new one.

    Args:
        path: Where the file goes; the temporary file has the same name. A missing parent folder is made.

    Raises:
        BadFile: The file cannot be written, for example to a full disk.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=TEMP_PREFIX, dir=path.parent, ignore_cleanup_errors=True) as temp_folder:
            temp_path = Path(temp_folder, path.name)
            yield temp_path
            flush(temp_path)
            temp_path.replace(path)
        flush(path.parent)
    except OSError as error:
        raise write_error(path, error) from None
    except BadFile as error:  # raised by the writer, about the hidden path
        if isinstance(error.__context__, OSError):
            raise write_error(path, error.__context__) from None
        raise


def flush(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk; Windows cannot do that for folders."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> BadFile:
    """Return the error that says why a file of a run cannot be written."""
    remedy = "make room there" if error.errno in DISK_FULL_ERRORS else "allow writing there"
    return BadFile(f"{path} cannot be written: {error.strerror or error}: {remedy}, then resume the run")


def read_records(path: Path) -> list[dict[str, object]]:
    """Return the complete lines of a log, which may be in use; a line that a crash cut off is left out."""
    records: list[dict[str, object]] = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            record: object = json.loads(line)
            records += [cast("dict[str, object]", record)] if isinstance(record, dict) else []
    return records


class RunLog:
    """A file of JSON lines that only grows, and that is locked as long as it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(LOCK_NAME), thread_local=False)  # released when the process ends
        try:
            self._lock.acquire(timeout=0)
            self._file = path.open("a+b", buffering=0)
        except Timeout:
            raise AlreadyExists(
                f"another process is using {path.parent}: wait until it ends, or stop it first"
            ) from None
        except OSError as error:
            self._lock.release()
            raise write_error(path, error) from None

    def add(self, record: Mapping[str, object]) -> None:
        """Append one line."""
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # a full disk took a part of it: end that line
                self._file.write(b"\n")
        except OSError as error:
            raise write_error(self.path, error) from None

    @property
    def size(self) -> int:
        """Flush the log to disk and return its size in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Remove all that was appended after the log had this size in bytes."""
        self._file.truncate(size)

    def records(self) -> list[dict[str, object]]:
        """Return all complete lines; a line that a crash cut off is left out."""
        return read_records(self.path)

    def moved_to(self, path: Path) -> RunLog:
        """Return this log, open and locked, under the path that its folder was moved to."""
        moved_log = copy.copy(self)
        moved_log.path = path
        return moved_log

    def close(self) -> None:
        """Close the file and release the lock of the run."""
        self._file.close()
        if self._lock.is_locked:
            with suppress(OSError):  # Windows does not delete open files
                self.path.with_name(LOCK_NAME).unlink()
            self._lock.release()
