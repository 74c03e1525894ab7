"""What a run writes stays written: whole files only, on the disk before they count, by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, cast

from velatura.errors import AlreadyExists, BadFile

TEMP_PREFIX = ".velatura-"  # how folders are called in which files are written
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
LOCK_OFFSET = 2**40  # Windows locks bytes, not files: one that no log will ever reach


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """Give a path of the same name in a hidden folder beside; what is there at the end is flushed and put in place.

    After a crash or a power cut there is either the old file or the new one. Raises BadFile for a full disk.
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
    except BadFile as error:  # a writer's own, of the hidden path
        if isinstance(error.__context__, OSError):
            raise write_error(path, error.__context__) from None
        raise


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk itself; Windows has no such thing for folders."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> BadFile:
    """The error that says why a run's file cannot be written."""
    remedy = "make room for it" if error.errno in DISK_FULL_ERRORS else "see that files may be written"
    return BadFile(f"{path} cannot be written: {error.strerror or error}: {remedy} there, then resume the run")


class RunLog:
    """A file of JSON lines that is only added to, and is locked as long as it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise write_error(path, error) from None
        try:
            _lock(self._file.fileno())
        except OSError:
            self._file.close()
            raise AlreadyExists(
                f"another process is at work on {path.parent}: wait until it is over, or stop it first"
            ) from None

    def add(self, record: Mapping[str, object]) -> None:
        """Add one line."""
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # what is left over on a disk that is full
                self._file.write(b"\n")
        except OSError as error:
            raise write_error(self.path, error) from None

    @property
    def size(self) -> int:
        """Bytes, all of them on the disk once this is known."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from None
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Forget what was added after it had this size."""
        self._file.truncate(size)

    def records(self) -> list[dict[str, object]]:
        """Every whole line; one that a crash cut off is none."""
        records: list[dict[str, object]] = []
        for line in self.path.read_bytes().splitlines():
            with suppress(ValueError, RecursionError):
                record: object = json.loads(line)
                records += [cast("dict[str, object]", record)] if isinstance(record, dict) else []
        return records

    def relocate(self, path: Path) -> Self:
        """The same log after its folder was renamed."""
        self.path = path
        return self

    def close(self) -> None:
        """Let others at it."""
        self._file.close()


def _lock(descriptor: int) -> None:
    """Lock a file until it is closed, or its process ends in whatever way."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
