"""Partial downloads: the bytes so far, and a record of their source, so that a later run can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from velatura.errors import AlreadyExists, DownloadFailed
from velatura.files import atomic_write


@dataclass(frozen=True)
class Digest:
    """A hash that a service states for a file: SHA-256, or git's blob hash. `value` is all or the first hex digits."""

    algorithm: Literal["sha256", "git"]
    value: str

    @property
    def sha256(self) -> str | None:
        """Return the complete SHA-256, or None if it is another hash or only its first digits."""
        return self.value.lower() if self.algorithm == "sha256" and len(self.value) == 64 else None

    def compute(self, path: Path) -> str:
        """Return the hash of a file, in the same algorithm."""
        digest = hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha1(usedforsecurity=False)
        if self.algorithm == "git":
            digest.update(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()

    def matches(self, path: Path) -> bool:
        """Return True if a file has this hash."""
        return self.compute(path).startswith(self.value.lower())


@dataclass(frozen=True)
class PartialFileRecord:
    """Record of a partial download.

    Attributes:
        url: URL without secrets.
        validator: ETag or date by which the server recognises the same file, or "".
        size: Total bytes, if the server states them.
    """

    url: str
    validator: str
    size: int | None


class PartialFile:
    """Beginning of a file: NAME.part, and its record NAME.part.json."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._record_path = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Return the bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def read_record(self) -> PartialFileRecord | None:
        """Return the record, or None without a partial file or with a damaged record."""
        try:
            return TypeAdapter(PartialFileRecord).validate_json(self._record_path.read_bytes()) if self.size else None
        except (OSError, ValidationError):
            return None

    def begin(self, record: PartialFileRecord) -> None:
        """Start an empty partial file with this record."""
        self.clear()
        with atomic_write(self._record_path) as temporary:
            temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
        self.path.touch()

    def clear(self) -> None:
        """Delete the partial file and its record."""
        for path in (self.path, self._record_path):
            path.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Move the complete file to its target.

        Raises:
            AlreadyExists: if the target exists.
        """
        with self.path.open("r+b") as file:  # Windows syncs only writable files
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing(target)
        try:
            self.path.rename(target)
        except OSError:  # another disk
            self._copy(target)
        self.clear()

    def _copy(self, target: Path) -> None:
        import shutil

        with atomic_write(target) as temporary:
            shutil.copyfile(self.path, temporary)


def refuse_existing(target: Path) -> None:
    """Raise AlreadyExists if anything has this path."""
    if os.path.lexists(target):
        raise AlreadyExists(f"{target} already exists, and is another file: move it, or download into another folder")


@contextmanager
def lock_target(target: Path) -> Generator[None]:
    """Keep other processes from downloading to the same path. A folder that was created and stays empty is removed.

    Raises:
        AlreadyExists: if another process is downloading to this path.
        DownloadFailed: if the folder cannot be written.
    """
    is_new = not target.parent.exists()
    lock = _acquire_lock(target)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete open files
            Path(lock.lock_file).unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # the folder is not empty
                target.parent.rmdir()


def _acquire_lock(target: Path) -> FileLock:
    """Create the target's folder and lock the target."""
    lock = FileLock(target.with_name(f"{target.name}.part.lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyExists(
            f"{target.name} is being downloaded to {target.parent} by another command: wait for it"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise DownloadFailed(f"{target.parent} cannot be written ({reason}): choose another folder with --to") from None
    return lock
