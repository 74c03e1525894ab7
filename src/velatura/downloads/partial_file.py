"""A file on its way: what has come of it, and what it is part of, so that another run can go on."""

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
    """What a service says of a file's content: its SHA-256, or git's hash of it, as their first digits or all."""

    algorithm: Literal["sha256", "git"]
    value: str

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of a file that fits, where all of it is told."""
        return self.value.lower() if self.algorithm == "sha256" and len(self.value) == 64 else None

    def compute(self, path: Path) -> str:
        """The same of a file that is here."""
        digest = hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha1(usedforsecurity=False)
        if self.algorithm == "git":
            digest.update(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()

    def matches(self, path: Path) -> bool:
        """Whether a file is the one that the service speaks of."""
        return self.compute(path).startswith(self.value.lower())


@dataclass(frozen=True)
class PartialFileRecord:
    """What lies beside a part: where it is from, and by what its server would know that it is still the same."""

    url: str
    validator: str
    size: int | None


class PartialFile:
    """The beginning of a file: NAME.part, and its note NAME.part.json."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._record_path = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """The bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def read_record(self) -> PartialFileRecord | None:
        """What is known of the part; nothing where there is none, or its note is of no use."""
        try:
            return TypeAdapter(PartialFileRecord).validate_json(self._record_path.read_bytes()) if self.size else None
        except (OSError, ValidationError):
            return None

    def begin(self, record: PartialFileRecord) -> None:
        """Start from nothing, saying of what."""
        self.clear()
        with atomic_write(self._record_path) as temporary:
            temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
        self.path.touch()

    def clear(self) -> None:
        """Forget all that has come."""
        for path in (self.path, self._record_path):
            path.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Give the whole file its name, never over another one."""
        with self.path.open("r+b") as file:  # Windows syncs only what may be written
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
    """Raise Occupied where something else has the name."""
    if os.path.lexists(target):
        raise AlreadyExists(
            f"{target} is there already, and is another file: move it away, or fetch into another folder"
        )


@contextmanager
def lock_target(target: Path) -> Generator[None]:
    """Be the only one who fetches a file to this place."""
    is_new = not target.parent.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadFailed(f"{target.parent} is no folder to write to ({error.strerror}): choose another") from None
    lock = FileLock(target.with_name(f"{target.name}.part.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyExists(
            f"{target.name} is being fetched to {target.parent} by another command: wait for it"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise DownloadFailed(
            f"{target.parent} cannot be written to ({reason}): choose another folder by --to"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows lets nobody remove it while it is held
            Path(lock.lock_file).unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # something has come
                target.parent.rmdir()
